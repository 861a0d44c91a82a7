//! The gate's signs estimated from sign bits: no training, a sixteenth of a bf16 gate's bytes (SparseInfer,
//! arXiv 2411.12692).

use sparrow_kernels::{Compute, Matrix};

/// The sign bits of one layer's gate, `[intermediate, ceil(hidden / 64)]`.
#[derive(Debug, Clone)]
pub struct SignBits {
    bits: Vec<u64>,
    hidden: usize,
}

impl SignBits {
    /// Of the gate `[intermediate, hidden]`.
    pub fn new(compute: &Compute, gate: Matrix) -> Self {
        SignBits { bits: compute.weight_signs(gate), hidden: gate.cols() }
    }

    /// Bytes read per token.
    pub fn bytes(&self) -> u64 {
        size_of_val(self.bits.as_slice()) as u64
    }

    /// `scores` `[m, intermediate]`: the share of positive products less that of negative ones, in −1..=1; `packed` is
    /// overwritten with the sign bits of `h`.
    pub(crate) fn scores(&self, compute: &Compute, h: &[f32], packed: &mut Vec<u64>, scores: &mut [f32]) {
        packed.resize(h.len() / self.hidden * self.hidden.div_ceil(64), 0);
        compute.pack_signs(h, self.hidden, packed);
        compute.sign_agreement(packed, &self.bits, self.hidden, scores);
    }
}
