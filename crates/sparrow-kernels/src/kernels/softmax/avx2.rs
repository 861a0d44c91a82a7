//! Softmax with AVX2: the portable lanes, vectorised.

use super::lanes;
use crate::simd::vectorised;

vectorised! { "avx2,fma,f16c":
    softmax_f32_avx2 = lanes::softmax, (x: &mut [f32]);
    max_ignoring_nan_f32_avx2 = lanes::max_ignoring_nan, (x: &[f32]) -> f32;
}
