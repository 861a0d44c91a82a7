//! Sums of 32-bit products with AVX-512: the portable loops, vectorised.

use super::scalar;
use crate::simd::vectorised;

vectorised! { "avx512f,avx512bw,avx512vl,avx512dq":
    dot_i32_avx512 = scalar::dot, (a: &[i32], b: &[i32]) -> i64;
    axpy_i32_avx512 = scalar::axpy, (a: i32, b: &[i32], sums: &mut [i64]);
}
