//! `axpy_rows` of codes with AVX-512.

use super::{AxpyRows, TILE};
use crate::dtype::Coded;
use crate::dtype::coded::{CHUNK, SPAN, Scales, each_chunk};
use crate::simd::avx512::{LANES, upto16};
use crate::simd::prefetch;
use std::arch::x86_64::*;

/// Rows that are added together.
const ROWS: usize = 8;

/// What half a chunk of codes, from element `c` of its span on, is worth.
///
/// # Safety
/// The scales must be those of the span; AVX-512.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
unsafe fn values<F: Coded>(codes: __m128i, scales: &Scales, c: usize) -> __m512 {
    let (code, at) = (_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(codes)), c / F::GROUP);
    let factor = _mm512_set1_ps(scales.factors[at]);
    if F::OFFSETS {
        _mm512_fmadd_ps(code, factor, _mm512_set1_ps(scales.offsets[at]))
    } else {
        _mm512_mul_ps(code, factor)
    }
}

/// Adds `R` rows, from row `j` of the set on, for activations `t0..t0 + tile`.
///
/// # Safety
/// See [`AxpyRowsFn`](super::AxpyRowsFn); `j + R <= count`, `t0 + tile <= m`, `tile <= TILE`; AVX-512.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
unsafe fn group<F: Coded, const R: usize>(a: &AxpyRows, j: usize, t0: usize, tile: usize) {
    let mut coefficients = [[0.0f32; R]; TILE];
    let mut scales = [Scales::default(); R];
    let (cols, end) = (a.rows.cols, a.start + a.cols);
    // SAFETY: rows j..j + R are in the set, activations t0..t0 + tile exist; chunks start below `end`, and results are
    // masked to below it.
    unsafe {
        let rows: [*const u8; R] = std::array::from_fn(|r| a.rows.row(j + r));
        let next: [*const u8; R] = std::array::from_fn(|r| a.rows.row((j + R + r).min(a.rows.count - 1)));
        for t in 0..tile {
            for r in 0..R {
                coefficients[t][r] = a.coefficient(t0 + t, j + r);
            }
        }
        for span in a.start / SPAN..end.div_ceil(SPAN) {
            if t0 == 0 {
                // The rows of the next call: hardware prefetch starts anew with every row.
                let bytes = const { F::DTYPE.row_bytes(SPAN) };
                for at in (0..bytes).step_by(64) {
                    next.iter().for_each(|row| prefetch(row.wrapping_add(span * bytes + at), false));
                }
            }
            for r in 0..R {
                F::scales(rows[r], cols, span, &mut scales[r]);
            }
            each_chunk! { (end - span * SPAN).min(SPAN).div_ceil(CHUNK), chunk => {
                let c = span * SPAN + chunk * CHUNK;
                let masks = [upto16(end - c), upto16((end - c).saturating_sub(LANES))];
                let mut w = [[_mm512_setzero_ps(); 2]; R];
                for r in 0..R {
                    let codes = F::codes(rows[r], cols, span, chunk);
                    let halves = [_mm256_castsi256_si128(codes), _mm256_extracti128_si256::<1>(codes)];
                    for half in 0..2 {
                        w[r][half] = values::<F>(halves[half], &scales[r], chunk * CHUNK + half * LANES);
                    }
                }
                for (t, k) in coefficients[..tile].iter().enumerate() {
                    let at = a.out.add((t0 + t) * a.out_stride).wrapping_add(c - a.start);
                    for (half, &mask) in masks.iter().enumerate() {
                        let at = at.wrapping_add(half * LANES);
                        let mut even = _mm512_maskz_loadu_ps(mask, at);
                        let mut odd = _mm512_setzero_ps();
                        for r in 0..R {
                            let k = _mm512_set1_ps(k[r]);
                            if r % 2 == 0 {
                                even = _mm512_fmadd_ps(k, w[r][half], even);
                            } else {
                                odd = _mm512_fmadd_ps(k, w[r][half], odd);
                            }
                        }
                        _mm512_mask_storeu_ps(at, mask, if R > 1 { _mm512_add_ps(even, odd) } else { even });
                    }
                }
            } }
        }
    }
}

/// # Safety
/// See [`AxpyRowsFn`](super::AxpyRowsFn); AVX-512.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
pub(crate) unsafe fn axpy_codes_avx512<F: Coded>(a: &AxpyRows) {
    let mut j = 0;
    while j < a.rows.count {
        let rows = if j + ROWS <= a.rows.count { ROWS } else { 1 };
        for t in (0..a.m).step_by(TILE) {
            let tile = TILE.min(a.m - t);
            // SAFETY: the contract is the caller's; the rows and activations are in range.
            unsafe {
                if rows == ROWS {
                    group::<F, ROWS>(a, j, t, tile);
                } else {
                    group::<F, 1>(a, j, t, tile);
                }
            }
        }
        j += rows;
    }
}
