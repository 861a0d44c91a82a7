//! The blocked products with AVX2: 6 activations by 2 vectors of outputs, 12 registers of sums.

use super::codes::codes;
use super::widened::widened;
use super::{Engine, Gemm, Layout, Outputs, Panel};
use crate::dtype::coded::{SPAN, Scales, each_chunk};
use crate::dtype::{BF16, Coded, F16, F32};
use crate::parallel::Workers;
use crate::simd::prefetch;
use std::arch::x86_64::*;
use std::ops::Range;

widened! { "avx2,fma,f16c", ops }
codes! { "avx2,fma,f16c", ops, gemm_codes_avx2, gemm_i8_avx2 }

/// # Safety
/// See [`GemmFn`](super::GemmFn); AVX2.
pub(crate) unsafe fn gemm_f32_avx2(workers: &Workers, gemm: &Gemm) {
    // SAFETY: the contract is the caller's.
    unsafe { super::driver::drive::<Widened<F32>>(workers, gemm) }
}

/// # Safety
/// See [`GemmFn`](super::GemmFn); AVX2.
pub(crate) unsafe fn gemm_f16_avx2(workers: &Workers, gemm: &Gemm) {
    // SAFETY: the contract is the caller's.
    unsafe { super::driver::drive::<Widened<F16>>(workers, gemm) }
}

/// # Safety
/// See [`GemmFn`](super::GemmFn); AVX2.
pub(crate) unsafe fn gemm_bf16_avx2(workers: &Workers, gemm: &Gemm) {
    // SAFETY: the contract is the caller's.
    unsafe { super::driver::drive::<Widened<BF16>>(workers, gemm) }
}

/// The vectors of the tier.
pub(super) mod ops {
    use crate::simd::avx2;
    pub(crate) use crate::simd::avx2::LANES;
    use std::arch::x86_64::*;

    pub(crate) const VECTORS: usize = 2;
    pub(crate) const TOKENS: usize = 6;
    pub(crate) type Integers = __m256i;

    crate::simd::wrapped! { "avx2,fma,f16c":
        zero() -> __m256 = _mm256_setzero_ps();
        zero_bits() -> __m256i = _mm256_setzero_si256();
        no_integers() -> __m256i = _mm256_setzero_si256();
        splat(value: f32) -> __m256 = _mm256_set1_ps(value);
        splat_integer(value: i32) -> __m256i = _mm256_set1_epi32(value);
        bits(v: __m256) -> __m256i = _mm256_castps_si256(v);
        multiply_add(a: __m256, b: __m256, c: __m256) -> __m256 = _mm256_fmadd_ps(a, b, c);
        to_floats(v: __m256i) -> __m256 = _mm256_cvtepi32_ps(v);
        add_pairs(sum: __m256i, w: __m256i, x: __m256i) -> __m256i = _mm256_add_epi32(sum, _mm256_madd_epi16(w, x));
        transpose(rows: [__m256i; 8]) -> [__m256i; 8] = avx2::transpose8(rows);
    }
    crate::simd::wrapped_unsafe! { "avx2,fma,f16c":
        load(p: *const f32) -> __m256 = _mm256_loadu_ps(p);
        load_integers(p: *const i32) -> __m256i = _mm256_loadu_si256(p.cast());
        store(p: *mut f32, v: __m256) -> () = _mm256_storeu_ps(p, v);
        store_bits(p: *mut f32, v: __m256i) -> () = _mm256_storeu_si256(p.cast(), v);
    }

    /// `n` elements from `c` on of a stored row.
    ///
    /// # Safety
    /// As [`avx2::load_at`]; `n` at most a vector.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(crate) unsafe fn load_at<const D: u8>(row: *const u8, c: usize, n: usize) -> __m256 {
        // SAFETY: the contract is the caller's.
        unsafe { if n >= LANES { avx2::load_at::<D>(row, c) } else { avx2::load_part_at::<D>(row, c, n) } }
    }

    /// 32 codes of each of 8 rows, as 16 vectors of pairs, `stride` pairs apart.
    ///
    /// # Safety
    /// They must be writable; AVX2.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(crate) unsafe fn store_pairs(rows: [__m256i; 8], to: *mut i32, stride: usize) {
        let mut low = [_mm256_setzero_si256(); 8];
        let mut high = low;
        for r in 0..8 {
            low[r] = _mm256_cvtepi8_epi16(_mm256_castsi256_si128(rows[r]));
            high[r] = _mm256_cvtepi8_epi16(_mm256_extracti128_si256::<1>(rows[r]));
        }
        for (half, rows) in [low, high].into_iter().enumerate() {
            for (pair, v) in avx2::transpose8(rows).into_iter().enumerate() {
                // SAFETY: the caller guarantees 16 vectors.
                unsafe { _mm256_storeu_si256(to.add((8 * half + pair) * stride).cast(), v) };
            }
        }
    }

    /// Adds to 8 sums, or sets them.
    ///
    /// # Safety
    /// They must be writable; AVX2.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(crate) unsafe fn add_to_f64(sums: *mut f64, v: __m256i, first: bool) {
        let halves = [_mm256_castsi256_si128(v), _mm256_extracti128_si256::<1>(v)];
        for (half, v) in halves.into_iter().enumerate() {
            // SAFETY: the caller guarantees the sums.
            unsafe {
                let at = sums.add(4 * half);
                let before = if first { _mm256_setzero_pd() } else { _mm256_loadu_pd(at) };
                _mm256_storeu_pd(at, _mm256_add_pd(before, _mm256_cvtepi32_pd(v)));
            }
        }
    }
}
