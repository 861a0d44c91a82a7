//! Softmax with AVX-512: the portable lanes, vectorised.

use super::lanes;
use crate::simd::vectorised;

vectorised! { "avx512f,avx512bw,avx512vl,avx512dq,fma":
    softmax_f32_avx512 = lanes::softmax, (x: &mut [f32]);
    max_ignoring_nan_f32_avx512 = lanes::max_ignoring_nan, (x: &[f32]) -> f32;
}
