//! The gate's signs estimated from sign bits: no training, a sixteenth of a bf16 gate's bytes (SparseInfer,
//! arXiv 2411.12692).

use sparrow_kernels::Compute;

use crate::checkpoint::Weight;

/// The sign bits of one layer's gate, `[intermediate, ceil(hidden / 64)]`.
#[derive(Debug, Clone)]
pub struct SignBits {
    bits: Vec<u64>,
    hidden: usize,
}

impl SignBits {
    /// Of the gate `[intermediate, hidden]`.
    pub fn new(compute: &Compute, gate: &Weight) -> Self {
        let (rows, hidden) = (gate.rows(), gate.cols());
        let bits = match gate {
            Weight::Dense(tensor) => compute.weight_signs(tensor.matrix()),
            Weight::Bitmap(_) => {
                let words = hidden.div_ceil(64);
                let (mut row, mut bits) = (vec![0.0; hidden], vec![0; rows * words]);
                for (i, bits) in bits.chunks_exact_mut(words).enumerate() {
                    gate.decode(i..i + 1, &mut row);
                    compute.pack_signs(&row, hidden, bits);
                }
                bits
            }
        };
        SignBits { bits, hidden }
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
