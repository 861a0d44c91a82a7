//! Input sparsity: leaving out the small inputs of a projection, and with them rows of its weights (TEAL,
//! arXiv 2408.14690).

use serde::{Deserialize, Serialize};
use sparrow_kernels::{Stored, count_ones, union_masks};

use super::threshold::Threshold;
use crate::backend::Cpu;

/// The projections of a decoder layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[repr(usize)]
pub enum Projection {
    /// Queries.
    Q,
    /// Keys.
    K,
    /// Values.
    V,
    /// Attention's output.
    O,
    /// The MLP's gate.
    Gate,
    /// The MLP's up projection.
    Up,
    /// The MLP's down projection.
    Down,
}

impl Projection {
    /// All of them, in the order of thresholds.
    pub const ALL: [Projection; 7] = {
        use Projection::*;
        [Q, K, V, O, Gate, Up, Down]
    };
}

/// What is left of a projection's weights: read for some row, and kept summed over rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Kept {
    /// Bytes of the rows read.
    pub bytes: u64,
    /// Weights that counted, summed over activations.
    pub weights: u64,
    /// Weights times activations.
    pub of: u64,
}

/// Thresholds on the magnitude of the inputs of each projection (by [`Projection`]) of each layer.
#[derive(Debug, Clone, PartialEq)]
pub struct InputThresholds(pub Vec<[Threshold; 7]>);

/// Working memory to leave out inputs.
#[derive(Debug, Default)]
pub(crate) struct ActiveInputs {
    x: Vec<f32>,
    scores: Vec<f32>,
    masks: Vec<u64>,
    union: Vec<u64>,
    ids: Vec<u32>,
    spare: Vec<f32>,
}

impl ActiveInputs {
    /// Room for `m` rows of `width` inputs.
    pub fn reserve(&mut self, m: usize, width: usize) {
        self.x.reserve(m * width);
        self.scores.reserve(width);
        self.masks.reserve(m * width.div_ceil(64));
        self.union.reserve(width.div_ceil(64));
        self.ids.reserve(width.next_multiple_of(64));
        self.spare.reserve(width);
    }
}

impl InputThresholds {
    /// `out = x̂·W + b`, where `x̂` is `x` `[m, in]` without the inputs that are not above the threshold; `weights` are
    /// `[in, out]`. A few rows read only the weights of inputs that one of them needs.
    #[allow(clippy::too_many_arguments)]
    pub(crate) fn linear(
        &self,
        cpu: &Cpu,
        layer: usize,
        projection: Projection,
        weights: Stored,
        bias: Option<&[f32]>,
        x: &[f32],
        m: usize,
        gather: bool,
        out: &mut [f32],
        s: &mut ActiveInputs,
    ) -> Kept {
        let (n, width) = (weights.rows(), weights.cols());
        let words = n.div_ceil(64);
        s.masks.resize(m * words, 0);
        s.union.resize(words, 0);
        let rule = self.0[layer][projection as usize];
        for (x, mask) in x.chunks_exact(n).zip(s.masks.chunks_exact_mut(words)) {
            s.scores.clear();
            s.scores.extend_from_slice(x);
            rule.mask(&cpu.compute, &mut s.scores, true, &mut s.spare, mask);
        }
        let rows = if gather {
            union_masks(&s.masks, words, &mut s.union);
            cpu.compute.mask_to_ids(&s.union, &mut s.ids);
            s.ids.len()
        } else {
            n
        };
        s.x.clear();
        s.x.extend_from_slice(x);
        cpu.compute.zero_unset(&mut s.x, n, &s.masks);
        let inputs = (rows < n).then_some(s.ids.as_slice());
        cpu.compute.linear_in_out(&s.x, m, weights, inputs, bias, out);
        Kept {
            bytes: (rows * weights.size() / n.max(1)) as u64,
            weights: (count_ones(&s.masks) * width) as u64,
            of: (m * n * width) as u64,
        }
    }
}
