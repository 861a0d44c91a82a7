//! Normalisation with AVX-512: the portable lanes, vectorised.

use super::lanes;
use crate::simd::vectorised;

vectorised! { "avx512f,avx512bw,avx512vl,avx512dq,fma":
    rms_norm_f32_avx512 = lanes::rms_norm,
        (x: &[f32], weight: &[f32], offset: f32, eps: f32, out: &mut [f32]);
    layer_norm_f32_avx512 = lanes::layer_norm,
        (x: &[f32], weight: &[f32], bias: Option<&[f32]>, eps: f32, out: &mut [f32]);
    add_assign_f32_avx512 = lanes::add_assign, (x: &mut [f32], y: &[f32]);
}
