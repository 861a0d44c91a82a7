//! Activations without branches, for the compiler to vectorise with fused multiply-add.

use super::Activation;
use super::scalar::{GELU_TANH, fat_relu, relu};
use crate::simd::lanes::{erf, exp, fma};

#[inline(always)]
fn each(a: Activation, visit: impl Visit) {
    match a {
        Activation::Silu => visit.with(|x| x / (1.0 + exp::<true>(-x))),
        Activation::Relu | Activation::DoubleRelu => visit.with(relu),
        Activation::FatRelu(threshold) => visit.with(|x| fat_relu(x, threshold)),
        Activation::ReluSquared => visit.with(|x| relu(x) * relu(x)),
        Activation::Gelu => visit.with(|x| 0.5 * x * (1.0 + erf::<true>(x * std::f32::consts::FRAC_1_SQRT_2))),
        Activation::GeluTanh => visit.with(|x| {
            let inner = GELU_TANH * fma::<true>(0.044_715 * x * x, x, x);
            x / (1.0 + exp::<true>(-2.0 * inner))
        }),
        Activation::GeluSigmoid => visit.with(|x| x / (1.0 + exp::<true>(-1.702 * x))),
        Activation::Identity => visit.with(|x| x),
    }
}

/// A loop over values, compiled once per activation.
trait Visit {
    fn with(self, f: impl Fn(f32) -> f32);
}

struct InPlace<'a>(&'a mut [f32]);
impl Visit for InPlace<'_> {
    #[inline(always)]
    fn with(self, f: impl Fn(f32) -> f32) {
        for value in self.0 {
            *value = f(*value);
        }
    }
}

struct Gated<'a>(&'a [f32], &'a [f32], &'a mut [f32]);
impl Visit for Gated<'_> {
    #[inline(always)]
    fn with(self, f: impl Fn(f32) -> f32) {
        for ((out, &gate), &up) in self.2.iter_mut().zip(self.0).zip(self.1) {
            *out = f(gate) * up;
        }
    }
}

#[inline(always)]
pub(super) fn activate(a: Activation, x: &mut [f32]) {
    each(a, InPlace(x));
}

#[inline(always)]
pub(super) fn gated(a: Activation, gate: &[f32], up: &[f32], out: &mut [f32]) {
    if a == Activation::DoubleRelu {
        for ((out, &gate), &up) in out.iter_mut().zip(gate).zip(up) {
            *out = relu(gate) * relu(up);
        }
        return;
    }
    each(a, Gated(gate, up, out));
}
