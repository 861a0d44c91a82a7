//! `dot_codes` with AVX2.

use super::DotCodes;
use crate::dtype::Coded;
use crate::dtype::coded::{CHUNK, SPAN, Scales, each_chunk};
use crate::simd::avx2::sum;
use crate::simd::prefetch;
use std::arch::x86_64::*;

/// One row by `M` activations: `S` vectors of partial sums each, so that additions need not wait for each other.
///
/// # Safety
/// See [`DotCodesFn`](super::DotCodesFn); row `j` and activations `t..t + M` must exist; AVX2.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn tile<F: Coded, const M: usize, const S: usize>(a: &DotCodes, j: usize, t: usize) {
    let cols = a.rows.cols;
    let mut sums = [[_mm256_setzero_ps(); S]; M];
    let mut scales = Scales::default();
    // SAFETY: chunks start below cols, x is padded to whole spans.
    unsafe {
        let row = a.rows.row(j);
        let next = a.rows.row((j + 1).min(a.rows.count - 1));
        let x: [*const i16; M] =
            std::array::from_fn(|m| if F::APART { a.x.arranged(t + m).cast() } else { a.x.codes(t + m) });
        for span in 0..cols.div_ceil(SPAN) {
            let start = span * SPAN;
            if t == 0 {
                // The row of the next call: hardware prefetch starts anew with every row.
                let bytes = const { F::DTYPE.row_bytes(SPAN) };
                let next = next.wrapping_add(span * bytes);
                (0..bytes).step_by(64).for_each(|at| prefetch(next.wrapping_add(at), false));
            }
            F::word_scales(row, cols, span, &mut scales);
            if F::WORD_OFFSETS {
                for m in 0..M {
                    add_offsets::<F, S>(&scales, a, t + m, start, &mut sums[m]);
                }
            }
            each_chunk! { constant (cols - start).min(SPAN).div_ceil(CHUNK), chunk => {
                let [first, second] = F::words(row, cols, span, chunk);
                let factors = halves::<F>(&scales.factors, chunk);
                for m in 0..M {
                    let x = x[m].add(start + chunk * CHUNK);
                    let first = _mm256_madd_epi16(first, _mm256_load_si256(x.cast()));
                    let second = _mm256_madd_epi16(second, _mm256_load_si256(x.add(16).cast()));
                    let both = _mm256_cvtepi32_ps(_mm256_add_epi32(first, second));
                    let sum = &mut sums[m][chunk % S];
                    *sum = _mm256_fmadd_ps(both, factors, *sum);
                }
            } }
        }
        for m in 0..M {
            let all = sums[m].into_iter().reduce(|a, b| _mm256_add_ps(a, b)).unwrap_unchecked();
            *a.out.add((t + m) * a.out_stride + j) = sum(all) * a.x.scale(t + m);
        }
    }
}

/// The factor of the first and of the second half of chunk number `chunk`, each in a half of the vector.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn halves<F: Coded>(factors: &[f32; 16], chunk: usize) -> __m256 {
    let first = chunk * CHUNK / F::GROUP;
    if F::GROUP == CHUNK {
        _mm256_set1_ps(factors[first])
    } else {
        let both = f64::from_bits(u64::from(factors[first].to_bits()) | u64::from(factors[first + 1].to_bits()) << 32);
        _mm256_permutevar_ps(_mm256_castpd_ps(_mm256_set1_pd(both)), _mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1))
    }
}

/// Adds what the offsets of a span are worth.
///
/// # Safety
/// Activation `t` must have the span; AVX2.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn add_offsets<F: Coded, const S: usize>(
    scales: &Scales,
    a: &DotCodes,
    t: usize,
    span: usize,
    sums: &mut [__m256; S],
) {
    let offsets = scales.offsets.as_ptr();
    // SAFETY: x has sums for whole spans.
    unsafe {
        if F::GROUP == 16 {
            let of_x = a.x.sums16(t).add(span / 16);
            for (half, sum) in sums[..2].iter_mut().enumerate() {
                let (offsets, of_x) = (offsets.add(8 * half), of_x.add(8 * half));
                *sum = _mm256_fmadd_ps(_mm256_load_ps(offsets), _mm256_loadu_ps(of_x), *sum);
            }
        } else {
            let of_x = a.x.sums(t).add(span / 32);
            sums[0] = _mm256_fmadd_ps(_mm256_load_ps(offsets), _mm256_loadu_ps(of_x), sums[0]);
        }
    }
}

/// # Safety
/// See [`DotCodesFn`](super::DotCodesFn); AVX2.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) unsafe fn dot_codes_avx2<F: Coded>(a: &DotCodes) {
    for j in 0..a.rows.count {
        let mut t = 0;
        while t < a.m {
            // SAFETY: the contract is the caller's; rows and activations are in range.
            unsafe {
                t += match a.m - t {
                    4.. => {
                        tile::<F, 4, 2>(a, j, t);
                        4
                    }
                    2.. => {
                        tile::<F, 2, 2>(a, j, t);
                        2
                    }
                    _ => {
                        tile::<F, 1, 4>(a, j, t);
                        1
                    }
                };
            }
        }
    }
}
