//! Softmax with AVX2: the portable lanes, vectorised.

use super::lanes;
use crate::simd::vectorised;

vectorised! { "avx2,fma,f16c":
    softmax_f32_avx2 = lanes::softmax, (x: &mut [f32]);
    exp_sum_f32_avx2 = lanes::exp_sum, (x: &mut [f32], shift: f32) -> f32;
    scale_scores_f32_avx2 = lanes::scale_scores, (scores: &mut [f32], scale: f32, cap: Option<f32>);
    max_ignoring_nan_f32_avx2 = lanes::max_ignoring_nan, (x: &[f32]) -> f32;
}
