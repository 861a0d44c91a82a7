//! `dot_int8` with AVX2.

use super::DotInt8;
use crate::dtype::quantized::quantize_int8;
use crate::simd::vectorised;
use std::arch::x86_64::*;

/// Codes of one vector.
const LANES: usize = 32;

vectorised! { "avx2,fma,f16c":
    quantize_avx2 = quantize_int8, (x: &[f32], codes: &mut [u8]) -> (f32, i32);
}

/// `R` rows by `M` activations.
///
/// The instruction multiplies unsigned by signed and adds pairs with 16 bits: |w| · (x with the sign of w) is at most
/// 2 · 128 · 127, which fits.
///
/// # Safety
/// See [`DotInt8Fn`](super::DotInt8Fn); rows `j..j + R` and activations `t..t + M` must exist; AVX2.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn tile<const R: usize, const M: usize>(a: &DotInt8, j: usize, t: usize) {
    let mut sums = [[_mm256_setzero_si256(); M]; R];
    let (cols, ones) = (a.rows.cols, _mm256_set1_epi16(1));
    // SAFETY: whole vectors of a row are below cols, its last part is copied; x is padded.
    unsafe {
        let rows: [*const u8; R] = std::array::from_fn(|r| a.rows.row(j + r));
        for i in (0..cols).step_by(LANES) {
            let mut w = [_mm256_setzero_si256(); R];
            for r in 0..R {
                w[r] = if i + LANES <= cols {
                    _mm256_loadu_si256(rows[r].add(i).cast())
                } else {
                    let mut last = [0u8; LANES];
                    std::ptr::copy_nonoverlapping(rows[r].add(i), last.as_mut_ptr(), cols - i);
                    _mm256_loadu_si256(last.as_ptr().cast())
                };
            }
            for m in 0..M {
                let x = _mm256_loadu_si256(a.x.codes(t + m).add(i).cast());
                for r in 0..R {
                    let pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w[r]), _mm256_sign_epi8(x, w[r]));
                    sums[r][m] = _mm256_add_epi32(sums[r][m], _mm256_madd_epi16(pairs, ones));
                }
            }
        }
        for m in 0..M {
            for r in 0..R {
                let v = sums[r][m];
                let v = _mm_add_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256::<1>(v));
                let v = _mm_add_epi32(v, _mm_shuffle_epi32::<0b01_00_11_10>(v));
                let v = _mm_add_epi32(v, _mm_shuffle_epi32::<0b10_11_00_01>(v));
                a.write(t + m, j + r, rows[r], _mm_cvtsi128_si32(v));
            }
        }
    }
}

/// # Safety
/// See [`DotInt8Fn`](super::DotInt8Fn); AVX2.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) unsafe fn dot_int8_avx2(a: &DotInt8) {
    for t in (0..a.m).step_by(2) {
        let mut j = 0;
        while j < a.rows.count {
            let rows = if j + 4 <= a.rows.count { 4 } else { 1 };
            // SAFETY: the contract is the caller's; rows and activations are in range.
            unsafe {
                match (rows, a.m - t) {
                    (4, 1) => tile::<4, 1>(a, j, t),
                    (4, _) => tile::<4, 2>(a, j, t),
                    (_, 1) => tile::<1, 1>(a, j, t),
                    _ => tile::<1, 2>(a, j, t),
                }
            }
            j += rows;
        }
    }
}
