//! Normalisation with AVX2: the portable lanes, vectorised.

use super::lanes;
use crate::simd::vectorised;

vectorised! { "avx2,fma,f16c":
    rms_norm_f32_avx2 = lanes::rms_norm,
        (x: &[f32], weight: &[f32], offset: f32, eps: f32, out: &mut [f32]);
    layer_norm_f32_avx2 = lanes::layer_norm,
        (x: &[f32], weight: &[f32], bias: Option<&[f32]>, eps: f32, out: &mut [f32]);
    add_assign_f32_avx2 = lanes::add_assign, (x: &mut [f32], y: &[f32]);
}
