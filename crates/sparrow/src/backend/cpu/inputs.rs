//! Linear layers without the small inputs, and the rows of their weights.

use sparrow_kernels::{LinearPart, count_ones, union_masks};

use super::machine::{Cpu, GATHER_ROWS};
use super::threshold::{EVERYTHING, Of, mask};
use crate::backend::{Row, Threshold};

/// Working memory to leave out inputs.
#[derive(Debug, Default)]
pub struct ActiveInputs {
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

    /// `out = x̂·W + b` for each part, where `x̂` is `x` `[rows, in]` without the inputs whose magnitude, times its norm, is not above
    /// the threshold; weights are `[in, out]`. A few rows read only the weights of inputs that one of them needs. The first token of a sequence is computed
    /// whole: every later one attends to it, and its activations are like those of no other. Returns the bytes read.
    pub fn linear(
        &mut self,
        cpu: &Cpu,
        (rule, norms): (Threshold, Option<&[f32]>),
        x: &[f32],
        rows: &[Row],
        parts: &mut [LinearPart],
    ) -> u64 {
        let (m, n) = (rows.len(), x.len() / rows.len());
        let words = n.div_ceil(64);
        self.masks.resize(m * words, 0);
        self.union.resize(words, 0);
        for ((x, row), bits) in x.chunks_exact(n).zip(rows).zip(self.masks.chunks_exact_mut(words)) {
            self.scores.clear();
            match norms {
                None => self.scores.extend_from_slice(x),
                Some(norms) => self.scores.extend(x.iter().zip(norms).map(|(x, norm)| x * norm)),
            }
            let rule = if row.position == 0 { EVERYTHING } else { rule };
            mask(&cpu.compute, rule, Of::Magnitudes, &mut self.scores, &mut self.spare, bits);
        }
        let read = if m <= GATHER_ROWS {
            union_masks(&self.masks, words, &mut self.union);
            cpu.compute.mask_to_ids(&self.union, &mut self.ids);
            self.ids.len()
        } else {
            n
        };
        self.x.clear();
        self.x.extend_from_slice(x);
        cpu.compute.zero_unset(&mut self.x, n, &self.masks);
        let inputs = (read < n).then_some(self.ids.as_slice());
        cpu.compute.linear_in_out(&self.x, m, inputs, parts);
        parts.iter().map(|part| (read * part.weights.size() / n.max(1)) as u64).sum()
    }

    /// Of each row of the last [`linear`](Self::linear): the inputs that counted.
    pub fn active(&self) -> impl Iterator<Item = u64> + '_ {
        self.masks.chunks_exact(self.union.len().max(1)).map(|mask| count_ones(mask) as u64)
    }
}
