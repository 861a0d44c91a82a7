//! The blocked product of bf16 weights with AMX tiles, in assembly: the intrinsics are not stable yet.
//!
//! A product of tiles is C\[16, 16\] += A\[16 rows, 32\] · B\[32, 16 columns\], B in pairs: row p holds elements 2p and 2p + 1 of
//! all columns. Weights `[out, in]` are A as they are stored, the activations B, and C is the transposed result; weights
//! `[in, out]` are B after interleaving pairs of rows, the activations A, and C is the result. Either way the same loop.

use super::{Engine, Gemm, Layout, Panel};
use crate::Compute;
use crate::simd::amx::{load_tile_config, release_tiles};
use crate::simd::avx512::{first, prefetch, transpose16};
use std::arch::asm;
use std::arch::x86_64::*;

/// Bytes of a tile.
const TILE: usize = 1024;
/// Elements of k in a tile.
const STEP: usize = 32;

/// bf16 weights on AMX tiles, 2 × 2 tiles of sums.
struct Bf16;

// SAFETY: a panel and a strip are two tiles per step, 32 × 32 elements of 2 bytes; sums are four tiles, 32 × 32 of 4.
unsafe impl Engine for Bf16 {
    const ROWS: usize = 32;
    const TOKENS: usize = 32;
    const BLOCK: usize = 256;
    const STEP: usize = STEP;
    const W_BYTES: usize = 2;
    const X_BYTES: usize = 2;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
    unsafe fn pack_x(layout: Layout, x: *const f32, stride: usize, tokens: usize, len: usize, to: *mut u8) {
        for step in 0..len.div_ceil(STEP) {
            let left = len - step * STEP;
            let (low, high) = (upto16(left), upto16(left.saturating_sub(16)));
            for tile in 0..2 {
                let mut rows = [_mm512_setzero_si512(); 16];
                for (r, row) in rows.iter_mut().enumerate() {
                    let t = tile * 16 + r;
                    if t < tokens {
                        // SAFETY: token t exists, and the masks end at its last element.
                        let (a, b) = unsafe {
                            let from = x.add(t * stride + step * STEP);
                            (_mm512_maskz_loadu_ps(low, from), _mm512_maskz_loadu_ps(high, from.wrapping_add(16)))
                        };
                        *row = bits(_mm512_cvtne2ps_pbh(b, a));
                    }
                }
                if layout == Layout::OutIn {
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
                let (full, tail) = (panel.len / STEP, upto32(panel.len % STEP));
                let rows = panel.stored_rows();
                for r in 0..Self::ROWS {
                    let to = to.wrapping_add(r / 16 * TILE + r % 16 * 64);
                    // SAFETY: the stored row has `len` elements, which the masked load respects; the panel has two tiles
                    // per step.
                    unsafe {
                        if r < panel.rows {
                            let from = rows.at(r);
                            for step in 0..full {
                                let row = _mm512_loadu_si512(from.add(step * 64).cast());
                                _mm512_storeu_si512(to.add(step * 2 * TILE).cast(), row);
                            }
                            if full < steps {
                                let row = _mm512_maskz_loadu_epi16(tail, from.add(full * 64).cast());
                                _mm512_storeu_si512(to.add(full * 2 * TILE).cast(), row);
                            }
                        } else {
                            for step in 0..steps {
                                _mm512_storeu_si512(to.add(step * 2 * TILE).cast(), _mm512_setzero_si512());
                            }
                        }
                    }
                }
            }
            Layout::InOut => {
                // Unpacking interleaves within quarters of a vector; these put the quarters in order.
                let left = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11);
                let right = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);
                let mask = upto32(panel.rows);
                let rows = panel.stored_rows();
                let row = |i: usize| {
                    if i < panel.len {
                        // SAFETY: the stored row has `rows` elements from here, which the mask respects.
                        unsafe { _mm512_maskz_loadu_epi16(mask, rows.at(i).cast()) }
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
        unsafe {
            if first {
                asm!("tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3", options(nomem, nostack));
            } else {
                asm!(
                    "tileloadd tmm0, [{c} + {row}]",
                    "tileloadd tmm1, [{c} + {row} + 1024]",
                    "tileloadd tmm2, [{c} + {row} + 2048]",
                    "tileloadd tmm3, [{c} + {row} + 3072]",
                    c = in(reg) sums, row = in(reg) 64usize, options(nostack, readonly)
                );
            }
            asm!(
                "2:",
                "tileloadd tmm6, [{b} + {row}]",
                "tileloadd tmm4, [{a} + {row}]",
                "tileloadd tmm7, [{b} + {row} + 1024]",
                "tileloadd tmm5, [{a} + {row} + 1024]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7",
                "add {a}, 2048",
                "add {b}, 2048",
                "dec {steps}",
                "jnz 2b",
                a = inout(reg) a => _, b = inout(reg) b => _, steps = inout(reg) len / STEP => _,
                row = in(reg) 64usize, options(nostack, readonly)
            );
            asm!(
                "tilestored [{c} + {row}], tmm0",
                "tilestored [{c} + {row} + 1024], tmm1",
                "tilestored [{c} + {row} + 2048], tmm2",
                "tilestored [{c} + {row} + 3072], tmm3",
                c = in(reg) sums, row = in(reg) 64usize, options(nostack)
            );
        }
    }

    #[inline(always)]
    unsafe fn prefetch(p: *const u8, write: bool) {
        prefetch(p, write);
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    unsafe fn finish(
        layout: Layout,
        sums: *const f32,
        rows: usize,
        tokens: usize,
        bias: *const f32,
        out: *mut f32,
        stride: usize,
    ) {
        for row in (0..rows).step_by(16) {
            let mask = upto16(rows - row);
            for token in (0..tokens).step_by(16) {
                let tile = match layout {
                    Layout::OutIn => row / 16 * 2 + token / 16,
                    Layout::InOut => token / 16 * 2 + row / 16,
                };
                // SAFETY: sums are four tiles; the masks end at the last of `rows`, and tokens are counted.
                unsafe {
                    let from = sums.add(tile * TILE / 4);
                    let mut values: [__m512i; 16] =
                        std::array::from_fn(|r| _mm512_loadu_si512(from.add(r * 16).cast()));
                    if layout == Layout::OutIn {
                        values = transpose16(values);
                    }
                    let b =
                        if bias.is_null() { _mm512_setzero_ps() } else { _mm512_maskz_loadu_ps(mask, bias.add(row)) };
                    for (t, value) in values.into_iter().enumerate().take(tokens - token) {
                        let value = _mm512_castsi512_ps(value);
                        let value = if bias.is_null() { value } else { _mm512_add_ps(value, b) };
                        _mm512_mask_storeu_ps(out.add((token + t) * stride + row), mask, value);
                    }
                }
            }
        }
    }
}

/// The bits of 32 bf16 values.
#[inline(always)]
fn bits(v: __m512bh) -> __m512i {
    // SAFETY: both are 64 bytes without invalid bit patterns.
    unsafe { std::mem::transmute(v) }
}

/// The mask of the first `n` lanes, all if there are fewer.
#[inline(always)]
fn upto16(n: usize) -> __mmask16 {
    if n >= 16 { __mmask16::MAX } else { first(n) }
}

#[inline(always)]
fn upto32(n: usize) -> __mmask32 {
    if n >= 32 { __mmask32::MAX } else { (1u32 << n) - 1 }
}

/// Many activations, rounded to bf16, by bf16 weights.
///
/// # Safety
/// See [`GemmFn`](super::GemmFn); AMX-TILE, AMX-BF16, AVX512-BF16 and the permission to use tile state.
pub(crate) unsafe fn gemm_bf16_amx(compute: &Compute, gemm: &Gemm) {
    // SAFETY: the contract is the caller's.
    unsafe { super::driver::drive::<Bf16>(compute, gemm) }
}
