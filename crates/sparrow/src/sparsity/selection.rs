//! The neurons selected in one layer and step.

use sparrow_kernels::{count_ones, union_masks};

use super::threshold::Threshold;
use crate::backend::Cpu;
use crate::model::spec::ModelSpec;

/// The active neurons of the rows of one layer and step, and the working memory to find them.
#[derive(Debug, Default)]
pub struct Selection {
    /// One bitmap per row, `[m, ceil(intermediate / 64)]`: bit `i` says that neuron `i` counts for the row.
    pub masks: Vec<u64>,
    /// Ascending ids of the neurons active in any row.
    pub ids: Vec<u32>,
    /// Active neurons summed over rows.
    pub active: u64,
    /// Only neurons that are zero anyway were left out.
    pub(crate) zeros_only: bool,
    /// Bitmap of [`ids`](Self::ids).
    pub(crate) union: Vec<u64>,
    pub(crate) scores: Vec<f32>,
    pub(crate) low_rank: Vec<f32>,
    pub(crate) signs: Vec<u64>,
    spare: Vec<f32>,
}

impl Selection {
    pub(crate) fn reserve(&mut self, m: usize, spec: &ModelSpec) {
        self.resize(m, spec.intermediate_size);
        self.ids.reserve(spec.intermediate_size);
        self.spare.reserve(spec.intermediate_size);
        self.low_rank.reserve(m * spec.hidden_size);
        self.signs.reserve(m * spec.hidden_size.div_ceil(64));
    }

    pub(crate) fn resize(&mut self, m: usize, n: usize) {
        self.masks.resize(m * n.div_ceil(64), 0);
        self.union.resize(n.div_ceil(64), 0);
        self.scores.resize(m * n, 0.0);
    }

    /// Masks from scores.
    pub(crate) fn threshold(&mut self, cpu: &Cpu, rule: Threshold, magnitude: bool, n: usize) {
        let rows = self.scores.chunks_exact_mut(n).zip(self.masks.chunks_exact_mut(n.div_ceil(64)));
        for (scores, mask) in rows {
            rule.mask(&cpu.compute, scores, magnitude, &mut self.spare, mask);
        }
    }

    /// Union, ids and count from masks.
    pub(crate) fn unite(&mut self, cpu: &Cpu, n: usize) {
        union_masks(&self.masks, n.div_ceil(64), &mut self.union);
        cpu.compute.mask_to_ids(&self.union, &mut self.ids);
        self.active = count_ones(&self.masks) as u64;
    }

    /// Zeroes the inactive ones of `neurons`, `[m, n]`.
    pub(crate) fn mask(&self, cpu: &Cpu, neurons: &mut [f32], n: usize) {
        if !self.zeros_only {
            cpu.compute.zero_unset(neurons, n, &self.masks);
        }
    }

    /// Whether neuron `i` counts for row `r`, of a layer with `n` neurons.
    pub fn contains(&self, r: usize, i: usize, n: usize) -> bool {
        self.masks[r * n.div_ceil(64) + i / 64] >> (i % 64) & 1 == 1
    }
}
