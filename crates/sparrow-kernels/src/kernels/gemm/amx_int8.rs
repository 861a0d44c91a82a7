//! The blocked product of int8 weights with activations in 16-bit integers on AMX tiles.
//!
//! As in [`amx`](super::amx), with four neighbours of k where bf16 has two: C\[16, 16\] += A\[16 rows, 64\] · B\[64, 16
//! columns\], row p of B holding elements 4p to 4p + 3 of all columns. An activation is two signed bytes, 256 · high +
//! low: the two tiles of a strip are the high and the low bytes of the same 16 tokens. Sums of either are exact in `i32`.

use super::{Engine, Gemm, Layout, Outputs, Panel};
use crate::parallel::Workers;
use crate::simd::amx::{load_tile_config, multiply_tiles, release_tiles};
use crate::simd::avx512::{LANES, transpose16, upto16, upto32};
use crate::simd::avx512_bitmap::upto64;
use crate::simd::prefetch;
use crate::simd::tiles::TILE;
use std::arch::x86_64::*;
use std::ops::Range;

/// Elements of k in a tile.
const STEP: usize = 64;

/// Int8 weights on AMX tiles: two of outputs, by high and low bytes of activations.
struct Int8;

// SAFETY: a panel and a strip are two tiles per step, 32 × 64 bytes and 16 × 64 pairs of bytes; sums are four tiles, two
// of 4 bytes for each of 32 × 16.
unsafe impl Engine for Int8 {
    const ROWS: usize = 32;
    const TOKENS: usize = 16;
    const BLOCK: usize = 512;
    const STEP: usize = STEP;
    const W_BYTES: usize = 1;
    const X_BYTES: usize = 2;
    const SUM_BYTES: usize = 2 * size_of::<i32>();

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    unsafe fn pack_x(gemm: &Gemm, tokens: Range<usize>, k: usize, len: usize, to: *mut u8) {
        let x = gemm.quantized();
        for step in 0..len.div_ceil(STEP) {
            let mut bytes = [[_mm512_setzero_si512(); 16]; 2];
            for (r, t) in tokens.clone().enumerate() {
                // SAFETY: token t exists, and its codes are padded with zeros to a multiple of STEP.
                let halves = unsafe {
                    let from = x.codes(t).add(k + step * STEP);
                    [_mm512_loadu_si512(from.cast()), _mm512_loadu_si512(from.add(STEP / 2).cast())]
                };
                let high = halves.map(|v| _mm512_srai_epi16::<8>(_mm512_add_epi16(v, _mm512_set1_epi16(128))));
                bytes[0][r] = narrowed(high);
                // The low byte is what is left, whatever the rest of the 16 bits.
                bytes[1][r] = narrowed(halves);
            }
            for (tile, mut rows) in bytes.into_iter().enumerate() {
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
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    unsafe fn pack_w(panel: &Panel, to: *mut u8) {
        let stored = panel.stored_rows();
        let steps = panel.len.div_ceil(STEP);
        match panel.layout {
            Layout::OutIn => {
                for r in 0..Self::ROWS {
                    let to = to.wrapping_add(r / 16 * TILE + r % 16 * 64);
                    for step in 0..steps {
                        let mask = if r < panel.rows { upto64(panel.len - step * STEP) } else { 0 };
                        // SAFETY: the stored row has `len` codes from k, which the mask respects; the panel has two
                        // tiles per step.
                        unsafe {
                            let row = if mask == 0 {
                                _mm512_setzero_si512()
                            } else {
                                _mm512_maskz_loadu_epi8(mask, stored.at(r).add(step * STEP).cast())
                            };
                            _mm512_storeu_si512(to.add(step * 2 * TILE).cast(), row);
                        }
                    }
                }
            }
            Layout::InOut => {
                let mask = upto32(panel.rows);
                let row = |i: usize| {
                    if i < panel.len {
                        // SAFETY: the stored row has `rows` codes from here, which the mask respects.
                        unsafe { _mm256_maskz_loadu_epi8(mask, stored.at(i).cast()) }
                    } else {
                        _mm256_setzero_si256()
                    }
                };
                for quad in 0..steps * 16 {
                    let [a, b, c, d]: [__m256i; 4] = std::array::from_fn(|i| row(4 * quad + i));
                    let (ab, cd) = (_mm256_unpacklo_epi8(a, b), _mm256_unpacklo_epi8(c, d));
                    let (ab_high, cd_high) = (_mm256_unpackhi_epi8(a, b), _mm256_unpackhi_epi8(c, d));
                    // Four columns in each half of a vector: the first 16 columns in the low halves.
                    let columns = [
                        _mm256_unpacklo_epi16(ab, cd),
                        _mm256_unpackhi_epi16(ab, cd),
                        _mm256_unpacklo_epi16(ab_high, cd_high),
                        _mm256_unpackhi_epi16(ab_high, cd_high),
                    ];
                    let to = to.wrapping_add(quad / 16 * 2 * TILE + quad % 16 * 64);
                    for (i, four) in columns.into_iter().enumerate() {
                        // SAFETY: the panel has two tiles per step.
                        unsafe {
                            _mm_storeu_si128(to.add(i * 16).cast(), _mm256_castsi256_si128(four));
                            _mm_storeu_si128(to.add(TILE + i * 16).cast(), _mm256_extracti128_si256::<1>(four));
                        }
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
        unsafe { multiply_tiles!("tdpbssd", a, b, len / STEP, first, sums) };
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
        let x = gemm.quantized();
        for row in (0..outputs.rows).step_by(LANES) {
            let mask = upto16(outputs.rows - row);
            let mut scales = [1.0f32; LANES];
            if gemm.layout == Layout::OutIn {
                for (r, scale) in scales.iter_mut().enumerate().take(outputs.rows - row) {
                    *scale = outputs.weights.int8_scale(outputs.row + row + r);
                }
            }
            // SAFETY: sums are four tiles of i32; the masks end at the last of the rows, and tokens are counted.
            unsafe {
                let tile = |low: usize| {
                    let tile = match gemm.layout {
                        Layout::OutIn => row / 16 * 2 + low,
                        Layout::InOut => low * 2 + row / 16,
                    };
                    let from = sums.add(tile * TILE / 4);
                    let values: [__m512i; 16] = std::array::from_fn(|r| _mm512_loadu_si512(from.add(r * 16).cast()));
                    if gemm.layout == Layout::OutIn { transpose16(values) } else { values }
                };
                let (high, low) = (tile(0), tile(1));
                let scales = _mm512_loadu_ps(scales.as_ptr());
                for t in 0..tokens.len() {
                    let scale = _mm512_mul_ps(scales, _mm512_set1_ps(x.scale(tokens.start + t)));
                    let mut value = _mm512_mul_ps(joined(high[t], low[t]), scale);
                    if !bias.is_null() {
                        value = _mm512_add_ps(value, _mm512_maskz_loadu_ps(mask, bias.add(row)));
                    }
                    _mm512_mask_storeu_ps(out.add(t * stride + row), mask, value);
                }
            }
        }
    }
}

/// The low bytes of 64 numbers.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
fn narrowed(halves: [__m512i; 2]) -> __m512i {
    let [a, b] = halves.map(|v| _mm512_cvtepi16_epi8(v));
    _mm512_inserti64x4::<1>(_mm512_castsi256_si512(a), b)
}

/// 256 · high + low, exact until it is rounded to `f32`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
fn joined(high: __m512i, low: __m512i) -> __m512 {
    let half = |high: __m256i, low: __m256i| {
        let high = _mm512_mul_pd(_mm512_cvtepi32_pd(high), _mm512_set1_pd(256.0));
        _mm512_cvtpd_ps(_mm512_add_pd(high, _mm512_cvtepi32_pd(low)))
    };
    let first = half(_mm512_castsi512_si256(high), _mm512_castsi512_si256(low));
    let second = half(_mm512_extracti64x4_epi64::<1>(high), _mm512_extracti64x4_epi64::<1>(low));
    _mm512_insertf32x8::<1>(_mm512_castps256_ps512(first), second)
}

/// Many activations by weights of int8.
///
/// # Safety
/// See [`GemmFn`](super::GemmFn); AMX-TILE, AMX-INT8 and the permission to use tile state.
pub(crate) unsafe fn gemm_i8_amx(workers: &Workers, gemm: &Gemm) {
    // SAFETY: the contract is the caller's.
    unsafe { super::driver::drive::<Int8>(workers, gemm) }
}
