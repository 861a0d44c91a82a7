//! Activations with AVX-512: the portable lanes, vectorised.

use super::Activation;
use super::lanes;
use crate::simd::vectorised;

vectorised! { "avx512f,avx512bw,avx512vl,avx512dq,fma":
    activate_f32_avx512 = lanes::activate, (a: Activation, x: &mut [f32]);
    gated_f32_avx512 = lanes::gated, (a: Activation, gate: &[f32], up: &[f32], out: &mut [f32]);
}
