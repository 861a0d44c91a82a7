//! The machine: kernels, threads and scratch memory.

use std::sync::Arc;

use sparrow_kernels::Compute;

use crate::backend::{Layer, SignBits};
use crate::tensor::Weight;
use crate::weights::Weights;

/// Rows up to which active neurons (and inputs) are gathered. Above it the union of the rows' active sets is close to
/// everything and the matrix unit is the bound, so all are computed and inactive ones masked: the same result at prefill
/// speed.
pub const GATHER_ROWS: usize = 8;

/// One decoder layer.
pub type At<'a> = Layer<'a, Arc<Weights>>;

/// Runs the coarse operations of the forward pass on this machine's cores.
pub struct Cpu {
    /// Kernels, thread pool and scratch memory.
    pub compute: Compute,
}

impl std::fmt::Debug for Cpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Cpu({}, {} threads)", self.compute.isa(), self.compute.threads())
    }
}

impl Cpu {
    /// The best kernels of this CPU (capped by `SPARROW_ISA`), on `threads` threads or as many as there are cores to use.
    pub fn new(threads: Option<usize>) -> Self {
        Cpu { compute: Compute::new(threads) }
    }

    /// The sign bits of a gate, `[intermediate, hidden]`.
    pub fn sign_bits(&self, gate: &Weight) -> SignBits {
        let (rows, hidden) = (gate.rows(), gate.cols());
        let bits = match gate {
            Weight::Dense(tensor) => self.compute.weight_signs(tensor.matrix()),
            Weight::Bitmap(_) => {
                let words = hidden.div_ceil(64);
                let (mut row, mut bits) = (vec![0.0; hidden], vec![0; rows * words]);
                for (i, bits) in bits.chunks_exact_mut(words).enumerate() {
                    gate.decode(i..i + 1, &mut row);
                    self.compute.pack_signs(&row, hidden, bits);
                }
                bits
            }
        };
        SignBits { bits, hidden }
    }
}
