//! The blocked products with AVX-512: 8 activations by 3 vectors of outputs, 24 registers of sums. Those of integers
//! with VNNI.

use super::codes::codes;
use super::widened::widened;
use super::{Engine, Gemm, Layout, Outputs, Panel};
use crate::dtype::coded::{SPAN, Scales, each_chunk};
use crate::dtype::{BF16, Coded, F16, F32};
use crate::parallel::Workers;
use crate::simd::prefetch;
use std::arch::x86_64::*;
use std::ops::Range;

widened! { "avx512f,avx512bw,avx512vl,avx512dq", ops }
codes! { "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c", ops, gemm_codes_avx512, gemm_i8_avx512 }

/// # Safety
/// See [`GemmFn`](super::GemmFn); AVX-512.
pub(crate) unsafe fn gemm_f32_avx512(workers: &Workers, gemm: &Gemm) {
    // SAFETY: the contract is the caller's.
    unsafe { super::driver::drive::<Widened<F32>>(workers, gemm) }
}

/// # Safety
/// See [`GemmFn`](super::GemmFn); AVX-512.
pub(crate) unsafe fn gemm_f16_avx512(workers: &Workers, gemm: &Gemm) {
    // SAFETY: the contract is the caller's.
    unsafe { super::driver::drive::<Widened<F16>>(workers, gemm) }
}

/// # Safety
/// See [`GemmFn`](super::GemmFn); AVX-512.
pub(crate) unsafe fn gemm_bf16_avx512(workers: &Workers, gemm: &Gemm) {
    // SAFETY: the contract is the caller's.
    unsafe { super::driver::drive::<Widened<BF16>>(workers, gemm) }
}

/// The vectors of the tier.
mod ops {
    use crate::simd::avx512;
    pub(super) use crate::simd::avx512::{LANES, load_at};
    use std::arch::x86_64::*;

    pub(super) const VECTORS: usize = 3;
    pub(super) const TOKENS: usize = 8;
    pub(super) type Integers = __m512i;

    crate::simd::wrapped! { "avx512f,avx512bw,avx512vl,avx512dq":
        zero() -> __m512 = _mm512_setzero_ps();
        zero_bits() -> __m512i = _mm512_setzero_si512();
        no_integers() -> __m512i = _mm512_setzero_si512();
        splat(value: f32) -> __m512 = _mm512_set1_ps(value);
        splat_integer(value: i32) -> __m512i = _mm512_set1_epi32(value);
        bits(v: __m512) -> __m512i = _mm512_castps_si512(v);
        multiply_add(a: __m512, b: __m512, c: __m512) -> __m512 = _mm512_fmadd_ps(a, b, c);
        to_floats(v: __m512i) -> __m512 = _mm512_cvtepi32_ps(v);
        transpose(rows: [__m512i; 16]) -> [__m512i; 16] = avx512::transpose16(rows);
    }
    crate::simd::wrapped! { "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni":
        add_pairs(sum: __m512i, w: __m512i, x: __m512i) -> __m512i = _mm512_dpwssd_epi32(sum, w, x);
    }
    crate::simd::wrapped_unsafe! { "avx512f,avx512bw,avx512vl,avx512dq":
        load(p: *const f32) -> __m512 = _mm512_loadu_ps(p);
        load_integers(p: *const i32) -> __m512i = _mm512_loadu_si512(p.cast());
        store(p: *mut f32, v: __m512) -> () = _mm512_storeu_ps(p, v);
        store_bits(p: *mut f32, v: __m512i) -> () = _mm512_storeu_si512(p.cast(), v);
    }

    /// 32 codes of each of 16 rows, as 16 vectors of pairs, `stride` pairs apart.
    ///
    /// # Safety
    /// They must be writable; AVX-512.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    pub(super) unsafe fn store_pairs(rows: [__m256i; 16], to: *mut i32, stride: usize) {
        let mut widened = [_mm512_setzero_si512(); 16];
        for (to, row) in widened.iter_mut().zip(rows) {
            *to = _mm512_cvtepi8_epi16(row);
        }
        for (pair, v) in avx512::transpose16(widened).into_iter().enumerate() {
            // SAFETY: the caller guarantees 16 vectors.
            unsafe { _mm512_storeu_si512(to.add(pair * stride).cast(), v) };
        }
    }

    /// Adds to 16 sums, or sets them.
    ///
    /// # Safety
    /// They must be writable; AVX-512.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    pub(super) unsafe fn add_to_f64(sums: *mut f64, v: __m512i, first: bool) {
        let halves = [_mm512_castsi512_si256(v), _mm512_extracti64x4_epi64::<1>(v)];
        for (half, v) in halves.into_iter().enumerate() {
            // SAFETY: the caller guarantees the sums.
            unsafe {
                let at = sums.add(8 * half);
                let before = if first { _mm512_setzero_pd() } else { _mm512_loadu_pd(at) };
                _mm512_storeu_pd(at, _mm512_add_pd(before, _mm512_cvtepi32_pd(v)));
            }
        }
    }
}
