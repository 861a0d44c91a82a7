//! The blocked product of bf16 weights with AMX tiles, in assembly: the intrinsics are not stable yet.
//!
//! A product of tiles is C\[16, 16\] += A\[16 rows, 32\] · B\[32, 16 columns\], B in pairs: row p holds elements 2p and
//! 2p + 1 of all columns. Weights `[out, in]` are A as they are stored, the activations B, and C is the transposed
//! result; weights `[in, out]` are B after interleaving pairs of rows, the activations A, and C is the result. Either
//! way the same loop.

use super::{Engine, Gemm, Layout, Outputs, Panel, StoredRows};
use crate::dtype::{BF16, F32};
use crate::parallel::Workers;
use crate::simd::amx::{load_tile_config, multiply_tiles, release_tiles};
use crate::simd::avx512::{LANES, load_at, transpose16, upto16, upto32};
use crate::simd::prefetch;
use crate::simd::tiles::{TILE, bits, load_rounded};
use std::arch::x86_64::*;
use std::ops::Range;

/// Elements of k in a tile.
const STEP: usize = 32;

/// Weights of the type whose discriminant is `D`, bf16 or rounded to it, on AMX tiles: 2 × 2 tiles of sums. Codes come
/// decoded, as f32.
struct Bf16<const D: u8>;

// SAFETY: a panel and a strip are two tiles per step, 32 × 32 elements of 2 bytes; sums are four tiles, 32 × 32 of 4.
unsafe impl<const D: u8> Engine for Bf16<D> {
    const ROWS: usize = 32;
    const TOKENS: usize = 32;
    const BLOCK: usize = 256;
    const STEP: usize = STEP;
    const W_BYTES: usize = 2;
    const X_BYTES: usize = 2;
    const DECODES: bool = D == F32;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
    unsafe fn pack_x(gemm: &Gemm, tokens: Range<usize>, k: usize, len: usize, to: *mut u8) {
        let x = gemm.x[tokens.start * gemm.k + k..].as_ptr();
        for step in 0..len.div_ceil(STEP) {
            for tile in 0..2 {
                let mut rows = [_mm512_setzero_si512(); 16];
                for (r, row) in rows.iter_mut().enumerate() {
                    let t = tile * 16 + r;
                    if t < tokens.len() {
                        // SAFETY: token t exists, and has what is left of `len` elements here.
                        *row = unsafe { load_rounded(x.add(t * gemm.k + step * STEP), len - step * STEP) };
                    }
                }
                if gemm.layout == Layout::OutIn {
                    rows = transpose16(rows);
                }
                for (r, row) in rows.into_iter().enumerate() {
                    // SAFETY: the strip has two tiles per step.
                    unsafe { _mm512_storeu_si512(to.add((step * 2 + tile) * TILE + r * 64).cast(), row) };
                }
            }
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
    unsafe fn pack_w(panel: &Panel, to: *mut u8) {
        let steps = panel.len.div_ceil(STEP);
        match panel.layout {
            Layout::OutIn => {
                let stored = panel.stored_rows();
                for r in 0..Self::ROWS {
                    let to = to.wrapping_add(r / 16 * TILE + r % 16 * 64);
                    for step in 0..steps {
                        // SAFETY: the stored row has `len` elements from k, which the load respects; the panel has two
                        // tiles per step.
                        unsafe {
                            let row = if r < panel.rows {
                                elements::<D>(&stored, r, panel.k + step * STEP, panel.len - step * STEP)
                            } else {
                                _mm512_setzero_si512()
                            };
                            _mm512_storeu_si512(to.add(step * 2 * TILE).cast(), row);
                        }
                    }
                }
            }
            Layout::InOut => {
                // Unpacking interleaves within quarters of a vector; these put the quarters in order.
                let left = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11);
                let right = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);
                let stored = panel.stored_rows();
                let row = |i: usize| {
                    if i < panel.len {
                        // SAFETY: the stored row has `rows` elements from here, which the load respects.
                        unsafe { elements::<D>(&stored, i, panel.row, panel.rows) }
                    } else {
                        _mm512_setzero_si512()
                    }
                };
                for pair in 0..steps * 16 {
                    let (even, odd) = (row(2 * pair), row(2 * pair + 1));
                    let (low, high) = (_mm512_unpacklo_epi16(even, odd), _mm512_unpackhi_epi16(even, odd));
                    let to = to.wrapping_add(pair / 16 * 2 * TILE + pair % 16 * 64);
                    // SAFETY: the panel has two tiles per step.
                    unsafe {
                        _mm512_storeu_si512(to.cast(), _mm512_permutex2var_epi64(low, left, high));
                        _mm512_storeu_si512(to.add(TILE).cast(), _mm512_permutex2var_epi64(low, right, high));
                    }
                }
            }
        }
    }

    unsafe fn start() {
        // SAFETY: the caller guarantees AMX.
        unsafe { load_tile_config() };
    }

    unsafe fn stop() {
        // SAFETY: as above.
        unsafe { release_tiles() };
    }

    #[inline]
    unsafe fn multiply(layout: Layout, w: *const u8, x: *const u8, len: usize, first: bool, sums: *mut f32) {
        let (a, b) = match layout {
            Layout::OutIn => (w, x),
            Layout::InOut => (x, w),
        };
        // SAFETY: the caller guarantees AMX, configured tiles and the shapes; the compiler never uses tiles.
        unsafe { multiply_tiles!("tdpbf16ps", a, b, len / STEP, first, sums) };
    }

    #[inline(always)]
    unsafe fn prefetch(p: *const u8, write: bool) {
        prefetch(p, write);
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    unsafe fn finish(
        gemm: &Gemm,
        outputs: &Outputs,
        tokens: Range<usize>,
        sums: *const f32,
        bias: *const f32,
        out: *mut f32,
        stride: usize,
    ) {
        for row in (0..outputs.rows).step_by(16) {
            let mask = upto16(outputs.rows - row);
            for token in (0..tokens.len()).step_by(16) {
                let tile = match gemm.layout {
                    Layout::OutIn => row / 16 * 2 + token / 16,
                    Layout::InOut => token / 16 * 2 + row / 16,
                };
                // SAFETY: sums are four tiles; the masks end at the last of `rows`, and tokens are counted.
                unsafe {
                    let from = sums.add(tile * TILE / 4);
                    let mut values: [__m512i; 16] =
                        std::array::from_fn(|r| _mm512_loadu_si512(from.add(r * 16).cast()));
                    if gemm.layout == Layout::OutIn {
                        values = transpose16(values);
                    }
                    let b =
                        if bias.is_null() { _mm512_setzero_ps() } else { _mm512_maskz_loadu_ps(mask, bias.add(row)) };
                    for (t, value) in values.into_iter().enumerate().take(tokens.len() - token) {
                        let value = _mm512_castsi512_ps(value);
                        let value = if bias.is_null() { value } else { _mm512_add_ps(value, b) };
                        _mm512_mask_storeu_ps(out.add((token + t) * stride + row), mask, value);
                    }
                }
            }
        }
    }
}

/// Up to 32 elements from `c` on of stored row `i` of the panel, zeros after the first `n > 0`, as bf16.
///
/// # Safety
/// The row must have the elements; AVX512-BF16.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
unsafe fn elements<const D: u8>(stored: &StoredRows, i: usize, c: usize, n: usize) -> __m512i {
    let row = stored.row(i);
    // SAFETY: the contract is the caller's.
    unsafe {
        if D == BF16 {
            return _mm512_maskz_loadu_epi16(upto32(n), row.add(2 * c).cast());
        }
        let low = load_at::<D>(row, c, n.min(LANES));
        let high = if n > LANES { load_at::<D>(row, c + LANES, n.min(STEP) - LANES) } else { _mm512_setzero_ps() };
        bits(_mm512_cvtne2ps_pbh(high, low))
    }
}

/// Many activations, rounded to bf16, by weights in bf16.
///
/// # Safety
/// See [`GemmFn`](super::GemmFn); AMX-TILE, AMX-BF16, AVX512-BF16 and the permission to use tile state.
pub(crate) unsafe fn gemm_bf16_amx(workers: &Workers, gemm: &Gemm) {
    // SAFETY: the contract is the caller's.
    unsafe { super::driver::drive::<Bf16<BF16>>(workers, gemm) }
}

/// Many activations, rounded to bf16, by weights of codes rounded to it.
///
/// # Safety
/// As [`gemm_bf16_amx`].
pub(crate) unsafe fn gemm_codes_amx(workers: &Workers, gemm: &Gemm) {
    // SAFETY: the contract is the caller's.
    unsafe { super::driver::drive::<Bf16<F32>>(workers, gemm) }
}
