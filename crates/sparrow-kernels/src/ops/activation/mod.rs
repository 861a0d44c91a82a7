//! Activation functions, alone and as the gate of a gated MLP.

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;
#[cfg(target_arch = "x86_64")]
mod lanes;
pub(crate) mod scalar;

use crate::Compute;

/// The non-linearity of an MLP.
///
/// Vector tiers differ from the scalar one by at most 2⁻²¹ · |x| (exponentials within 2 ulp, see
/// [`Compute::activate`]). NaN stays NaN. An infinity gives what the equation gives, evaluated left to right: `silu(-∞)`
/// is NaN, as in the usual frameworks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Activation {
    /// x · σ(x), σ the logistic function (arXiv 1702.03118).
    Silu,
    /// max(x, 0).
    Relu,
    /// max(x, 0)² (arXiv 2109.08668).
    ReluSquared,
    /// x · Φ(x) = x/2 · (1 + erf(x/√2)) (arXiv 1606.08415).
    Gelu,
    /// The tanh approximation of [`Gelu`](Self::Gelu): x/2 · (1 + tanh(√(2/π) · (x + 0.044715 x³))).
    GeluTanh,
    /// The logistic approximation of [`Gelu`](Self::Gelu): x · σ(1.702 x).
    GeluSigmoid,
    /// x.
    Identity,
}

impl Activation {
    /// Every activation.
    pub const ALL: [Activation; 7] = [
        Activation::Silu,
        Activation::Relu,
        Activation::ReluSquared,
        Activation::Gelu,
        Activation::GeluTanh,
        Activation::GeluSigmoid,
        Activation::Identity,
    ];

    /// The activation of one value, by the scalar tier.
    pub fn apply(self, x: f32) -> f32 {
        scalar::apply(self, x)
    }
}

impl Compute {
    /// xᵢ ← a(xᵢ), any shape.
    ///
    /// Against an exact evaluation the error is at most 2⁻²¹ · |xᵢ| (for [`Activation::ReluSquared`] relative to xᵢ²).
    pub fn activate(&self, a: Activation, x: &mut [f32]) {
        // SAFETY: the table holds only kernels that this CPU can run.
        self.split_mut(x, COST, &|x| unsafe { (self.kernels.activate)(a, x) });
    }

    /// outᵢ = a(gateᵢ) · upᵢ, the gate of a gated MLP (GLU variants, arXiv 2002.05202). Any shape, the same for all.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn gated(&self, a: Activation, gate: &[f32], up: &[f32], out: &mut [f32]) {
        assert_eq!(gate.len(), out.len(), "gated: gate.len() and out.len() differ");
        assert_eq!(up.len(), out.len(), "gated: up.len() and out.len() differ");
        self.split_mut_indexed(out, COST, &|start, out| {
            let (gate, up) = (&gate[start..][..out.len()], &up[start..][..out.len()]);
            // SAFETY: the table holds only kernels that this CPU can run.
            unsafe { (self.kernels.gated)(a, gate, up, out) }
        });
    }
}

/// The work of one activation, in multiply-adds.
const COST: usize = 4;
