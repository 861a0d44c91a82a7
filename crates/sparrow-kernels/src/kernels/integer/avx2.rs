//! Sums of 32-bit products with AVX2: the portable loops, vectorised.

use super::scalar;
use crate::simd::vectorised;

vectorised! { "avx2,fma,f16c":
    dot_i32_avx2 = scalar::dot, (a: &[i32], b: &[i32]) -> i64;
    axpy_i32_avx2 = scalar::axpy, (a: i32, b: &[i32], sums: &mut [i64]);
}
