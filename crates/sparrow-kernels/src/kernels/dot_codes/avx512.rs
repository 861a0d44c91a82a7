//! `dot_codes` with AVX-512: codes come 32 at a time, as with AVX2, and fill one vector when they are widened.

use super::DotCodes;
use crate::dtype::Coded;
use crate::dtype::coded::{CHUNK, SPAN, Scales, each_chunk};
use crate::simd::prefetch;
use std::arch::x86_64::*;

/// Two rows, or one, by `M` activations.
///
/// # Safety
/// See [`DotCodesFn`](super::DotCodesFn); rows `j..j + R` and activations `t..t + M` must exist; AVX-512.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
unsafe fn tile<F: Coded, const R: usize, const M: usize>(a: &DotCodes, j: usize, t: usize) {
    let cols = a.rows.cols;
    let mut sums = [[_mm512_setzero_ps(); M]; R];
    let mut scales = [Scales::default(); R];
    // SAFETY: chunks start below cols, x is padded to whole spans.
    unsafe {
        let rows: [*const u8; R] = std::array::from_fn(|r| a.rows.row(j + r));
        let next: [*const u8; R] = std::array::from_fn(|r| a.rows.row((j + R + r).min(a.rows.count - 1)));
        let x: [*const i16; M] = std::array::from_fn(|m| a.x.codes(t + m));
        for span in 0..cols.div_ceil(SPAN) {
            let start = span * SPAN;
            // The rows of the next call: hardware prefetch starts anew with every row.
            let bytes = const { F::DTYPE.row_bytes(SPAN) };
            for at in (0..bytes).step_by(64) {
                next.iter().for_each(|row| prefetch(row.wrapping_add(span * bytes + at), false));
            }
            for r in 0..R {
                F::scales(rows[r], cols, span, &mut scales[r]);
                if F::OFFSETS {
                    for m in 0..M {
                        let offsets = scales[r].offsets.as_ptr();
                        let products = if F::GROUP == 16 {
                            _mm512_mul_ps(_mm512_load_ps(offsets), _mm512_loadu_ps(a.x.sums16(t + m).add(start / 16)))
                        } else {
                            let of_x = _mm256_loadu_ps(a.x.sums(t + m).add(start / 32));
                            _mm512_zextps256_ps512(_mm256_mul_ps(_mm256_load_ps(offsets), of_x))
                        };
                        sums[r][m] = _mm512_add_ps(sums[r][m], products);
                    }
                }
            }
            each_chunk! { (cols - start).min(SPAN).div_ceil(CHUNK), chunk => {
                for r in 0..R {
                    let codes = _mm512_cvtepi8_epi16(F::codes(rows[r], cols, span, chunk));
                    let factors = scales[r].factors.as_ptr().add(chunk * CHUNK / F::GROUP);
                    let factor = if F::GROUP == 16 {
                        let (low, high) = (_mm256_set1_ps(*factors), _mm256_set1_ps(*factors.add(1)));
                        _mm512_insertf32x8::<1>(_mm512_castps256_ps512(low), high)
                    } else {
                        _mm512_set1_ps(*factors)
                    };
                    for m in 0..M {
                        let products = _mm512_madd_epi16(codes, _mm512_load_si512(x[m].add(start + chunk * CHUNK).cast()));
                        sums[r][m] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(products), factor, sums[r][m]);
                    }
                }
            } }
        }
        for m in 0..M {
            for r in 0..R {
                *a.out.add((t + m) * a.out_stride + j + r) = _mm512_reduce_add_ps(sums[r][m]) * a.x.scale(t + m);
            }
        }
    }
}

/// # Safety
/// See [`DotCodesFn`](super::DotCodesFn); AVX-512.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
pub(crate) unsafe fn dot_codes_avx512<F: Coded>(a: &DotCodes) {
    let mut j = 0;
    while j < a.rows.count {
        let two = j + 2 <= a.rows.count;
        let mut t = 0;
        while t < a.m {
            // SAFETY: the contract is the caller's; rows and activations are in range.
            unsafe {
                t += match (a.m - t, two) {
                    (4.., true) => {
                        tile::<F, 2, 4>(a, j, t);
                        4
                    }
                    (_, true) => {
                        tile::<F, 2, 1>(a, j, t);
                        1
                    }
                    _ => {
                        tile::<F, 1, 1>(a, j, t);
                        1
                    }
                };
            }
        }
        j += if two { 2 } else { 1 };
    }
}
