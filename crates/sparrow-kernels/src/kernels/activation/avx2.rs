//! Activations with AVX2: the portable lanes, vectorised.

use super::Activation;
use super::lanes;
use crate::simd::vectorised;

vectorised! { "avx2,fma,f16c":
    activate_f32_avx2 = lanes::activate, (a: Activation, x: &mut [f32]);
    gated_f32_avx2 = lanes::gated, (a: Activation, gate: &[f32], up: &[f32], out: &mut [f32]);
}
