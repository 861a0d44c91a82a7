//! Attention over cached keys and values.
//!
//! [`span`] is the kernel of one row over some positions, [`tiled`] that of a block of rows that share a cache: there
//! keys and values are packed tile by tile, and [`widened`] multiplies in `f32`, [`tiles`] in bf16.

pub(crate) mod scalar;
pub(crate) mod span;
pub(crate) mod tiled;

#[cfg(target_arch = "x86_64")]
pub(crate) mod amx;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512_bf16;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512_vbmi2;
#[cfg(target_arch = "x86_64")]
mod tiles;
#[cfg(target_arch = "x86_64")]
mod widened;

/// What all rows of a call to [`Compute::attention`](crate::Compute::attention) share.
#[derive(Clone, Copy, Debug)]
pub struct AttentionShape {
    /// Query heads; a multiple of `kv_heads`.
    pub heads: usize,
    /// Key and value heads (grouped-query attention, arXiv 2305.13245): heads `g * kv .. g * (kv + 1)` share head `kv`,
    /// with `g = heads / kv_heads`.
    pub kv_heads: usize,
    /// Elements of one head.
    pub head_dim: usize,
    /// Multiplies q·k; usually 1/√head_dim.
    pub scale: f32,
    /// c: scores become c · tanh(score / c) (Gemma 2, arXiv 2408.00118).
    pub soft_cap: Option<f32>,
}
