//! Activation functions, alone and as the gate of a gated MLP.

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;
#[cfg(target_arch = "x86_64")]
mod lanes;
pub(crate) mod scalar;

/// The non-linearity of an MLP.
///
/// Vector tiers differ from the scalar one by at most 2⁻²¹ · |x| (exponentials within 2 ulp, see
/// [`Compute::activate`](crate::Compute::activate)). NaN stays NaN. An infinity gives what the equation gives,
/// evaluated left to right: `silu(-∞)` is NaN, as in the usual frameworks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Activation {
    /// x · σ(x), σ the logistic function (arXiv 1702.03118).
    Silu,
    /// max(x, 0).
    Relu,
    /// max(x, 0), and as the gate of an MLP max(gate, 0) · max(up, 0): dReLU (arXiv 2406.05955).
    DoubleRelu,
    /// x where it is above the threshold, 0 or above, else 0: FATReLU (arXiv 2402.13516).
    FatRelu(f32),
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
    /// Every activation, with a threshold of 0.01, that of published models.
    pub const ALL: [Activation; 9] = [
        Activation::Silu,
        Activation::Relu,
        Activation::DoubleRelu,
        Activation::FatRelu(0.01),
        Activation::ReluSquared,
        Activation::Gelu,
        Activation::GeluTanh,
        Activation::GeluSigmoid,
        Activation::Identity,
    ];
}
