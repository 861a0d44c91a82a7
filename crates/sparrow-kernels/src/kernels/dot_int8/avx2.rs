//! `dot_int8` with AVX2.

use super::{DotInt8, FLUSH};
use crate::rows::int16::quantize_apart;
use crate::simd::{prefetch, vectorised};
use std::arch::x86_64::*;

/// Codes of one step.
const STEP: usize = 32;

vectorised! { "avx2,fma,f16c":
    quantize_avx2 = quantize_apart, (x: &[f32], row: &mut [u8]);
}

/// `R` rows by `M` activations.
///
/// # Safety
/// See [`DotInt8Fn`](super::DotInt8Fn); rows `j..j + R` and activations `t..t + M` must exist; AVX2.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn tile<const R: usize, const M: usize>(a: &DotInt8, j: usize, t: usize) {
    let cols = a.rows.cols;
    let mut totals = [[0i64; M]; R];
    // SAFETY: whole vectors of a row are below cols, its last part is copied; x is padded.
    unsafe {
        let rows: [*const u8; R] = std::array::from_fn(|r| a.rows.row(j + r));
        let next: [*const u8; R] = std::array::from_fn(|r| a.rows.row((j + R + r).min(a.rows.count - 1)));
        let x: [*const i16; M] = std::array::from_fn(|m| a.x.codes(t + m));
        for start in (0..cols).step_by(FLUSH) {
            let mut sums = [[_mm256_setzero_si256(); M]; R];
            for i in (start..cols.min(start + FLUSH)).step_by(STEP) {
                for r in 0..R {
                    let w = if i + STEP <= cols {
                        _mm256_loadu_si256(rows[r].add(i).cast())
                    } else {
                        let mut last = [0u8; STEP];
                        std::ptr::copy_nonoverlapping(rows[r].add(i), last.as_mut_ptr(), cols - i);
                        _mm256_loadu_si256(last.as_ptr().cast())
                    };
                    // Hardware prefetch starts anew with every row.
                    if t == 0 && i.is_multiple_of(64) {
                        prefetch(next[r].wrapping_add(i), false);
                    }
                    let low = _mm256_cvtepi8_epi16(_mm256_castsi256_si128(w));
                    let high = _mm256_cvtepi8_epi16(_mm256_extracti128_si256::<1>(w));
                    for m in 0..M {
                        let x = x[m].add(i);
                        let low = _mm256_madd_epi16(low, _mm256_load_si256(x.cast()));
                        let high = _mm256_madd_epi16(high, _mm256_load_si256(x.add(STEP / 2).cast()));
                        sums[r][m] = _mm256_add_epi32(sums[r][m], _mm256_add_epi32(low, high));
                    }
                }
            }
            for r in 0..R {
                for m in 0..M {
                    totals[r][m] += total(sums[r][m]);
                }
            }
        }
        for r in 0..R {
            for m in 0..M {
                a.write(t + m, j + r, rows[r], totals[r][m]);
            }
        }
    }
}

/// The sum of all lanes.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn total(v: __m256i) -> i64 {
    let (low, high) = (_mm256_castsi256_si128(v), _mm256_extracti128_si256::<1>(v));
    let v = _mm256_add_epi64(_mm256_cvtepi32_epi64(low), _mm256_cvtepi32_epi64(high));
    let v = _mm_add_epi64(_mm256_castsi256_si128(v), _mm256_extracti128_si256::<1>(v));
    _mm_cvtsi128_si64(_mm_add_epi64(v, _mm_unpackhi_epi64(v, v)))
}

/// # Safety
/// See [`DotInt8Fn`](super::DotInt8Fn); AVX2.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) unsafe fn dot_int8_avx2(a: &DotInt8) {
    // SAFETY: the contract is the caller's; rows and activations are in range.
    unsafe {
        let mut j = 0;
        while j < a.rows.count {
            // One activation is bound by memory, which is read fastest as a single stream.
            let rows = if a.m > 1 && j + 4 <= a.rows.count { 4 } else { 1 };
            let mut t = 0;
            while t < a.m {
                let tokens = match a.m - t {
                    1 => 1,
                    _ => 2,
                };
                match (rows, tokens) {
                    (4, 1) => tile::<4, 1>(a, j, t),
                    (4, _) => tile::<4, 2>(a, j, t),
                    (_, 1) => tile::<1, 1>(a, j, t),
                    _ => tile::<1, 2>(a, j, t),
                }
                t += tokens;
            }
            j += rows;
        }
    }
}
