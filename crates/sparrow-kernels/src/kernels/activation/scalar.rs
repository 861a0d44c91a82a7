//! Activations in portable Rust, with the exponential of the standard library.

use super::Activation;
use crate::simd::lanes::erf;

/// The activation of one value.
#[inline(always)]
fn apply(a: Activation, x: f32) -> f32 {
    match a {
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::Relu | Activation::DoubleRelu => relu(x),
        Activation::FatRelu(threshold) => fat_relu(x, threshold),
        Activation::ReluSquared => relu(x) * relu(x),
        Activation::Gelu => 0.5 * x * (1.0 + erf::<false>(x * std::f32::consts::FRAC_1_SQRT_2)),
        Activation::GeluTanh => {
            let inner = GELU_TANH * (x + 0.044_715 * x * x * x);
            x / (1.0 + (-2.0 * inner).exp())
        }
        Activation::GeluSigmoid => x / (1.0 + (-1.702 * x).exp()),
        Activation::Identity => x,
    }
}

impl Activation {
    /// The activation of one value, by the scalar tier.
    pub fn apply(self, x: f32) -> f32 {
        apply(self, x)
    }
}

/// √(2/π).
pub(crate) const GELU_TANH: f32 = 0.797_884_6;

/// max(x, 0), and NaN for NaN.
#[inline(always)]
pub(crate) fn relu(x: f32) -> f32 {
    if x < 0.0 { 0.0 } else { x }
}

/// x above the threshold, else 0, and NaN for NaN.
#[inline(always)]
pub(crate) fn fat_relu(x: f32, threshold: f32) -> f32 {
    if x <= threshold { 0.0 } else { x }
}

/// # Safety
/// None: unsafe only to fit the table.
pub(crate) unsafe fn activate_f32_scalar(a: Activation, x: &mut [f32]) {
    for value in x {
        *value = apply(a, *value);
    }
}

/// # Safety
/// None: unsafe only to fit the table.
pub(crate) unsafe fn gated_f32_scalar(a: Activation, gate: &[f32], up: &[f32], out: &mut [f32]) {
    for ((out, &gate), &up) in out.iter_mut().zip(gate).zip(up) {
        *out = apply(a, gate) * if a == Activation::DoubleRelu { relu(up) } else { up };
    }
}
