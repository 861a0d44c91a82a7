//! What can be seen of a selector at work: how well it finds the neurons that are truly active, and how much the active
//! sets of successive tokens overlap.

use serde::{Deserialize, Serialize};
use sparrow_kernels::Activation;

use super::observer::Observer;
use super::selection::Selection;
use crate::backend::Cpu;
use crate::model::weights::{LayerWeights, Linear};

/// The layer whose values decide activity: the gate, or the up projection of an ungated MLP.
pub(crate) fn deciding(layer: &LayerWeights) -> &Linear {
    layer.mlp.gate.as_ref().unwrap_or(&layer.mlp.up)
}

/// Gate values of observed MLP inputs.
pub(crate) struct Gates<'a> {
    cpu: &'a Cpu,
    activation: Activation,
}

impl<'a> Gates<'a> {
    pub fn new(cpu: &'a Cpu, activation: Activation) -> Self {
        Gates { cpu, activation }
    }

    /// `values = act(gate·h)`, `[m, intermediate]`.
    pub fn activated(&self, gate: &Linear, h: &[f32], m: usize, values: &mut Vec<f32>) {
        values.resize(m * gate.outputs(), 0.0);
        self.cpu.linear(h, m, [(gate, values)]);
        self.cpu.compute.activate(self.activation, values);
    }
}

/// How well a selector finds the truly active neurons of one layer.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct PredictorQuality {
    /// Truly active neurons that were selected ÷ truly active.
    pub recall: f64,
    /// Truly active neurons that were selected ÷ selected.
    pub precision: f64,
    /// Truly active ÷ all.
    pub true_active_fraction: f64,
}

/// Counts a selector's hits and misses against the exact gate: `|act(gate)|` above the layer's `truth` is active.
pub struct Recall<'a> {
    gates: Gates<'a>,
    layers: &'a [LayerWeights],
    truth: &'a [f32],
    counts: Vec<Counts>,
    values: Vec<f32>,
}

#[derive(Clone, Copy, Default)]
struct Counts {
    all: u64,
    active: u64,
    selected: u64,
    both: u64,
}

impl<'a> Recall<'a> {
    /// Counts nothing yet; `truth` has one value per layer.
    pub fn new(cpu: &'a Cpu, layers: &'a [LayerWeights], activation: Activation, truth: &'a [f32]) -> Self {
        let (gates, counts) = (Gates::new(cpu, activation), vec![Counts::default(); layers.len()]);
        Recall { gates, layers, truth, counts, values: Vec::new() }
    }

    /// What was counted, per layer; a ratio of nothing to nothing is 1.
    pub fn per_layer(&self) -> Vec<PredictorQuality> {
        let ratio = |a: u64, b: u64| if b == 0 { 1.0 } else { a as f64 / b as f64 };
        let quality = |c: &Counts| PredictorQuality {
            recall: ratio(c.both, c.active),
            precision: ratio(c.both, c.selected),
            true_active_fraction: ratio(c.active, c.all),
        };
        self.counts.iter().map(quality).collect()
    }
}

impl Observer for Recall<'_> {
    fn mlp(&mut self, layer: usize, h: &[f32], m: usize, selection: Option<&Selection>) {
        let (truth, counts) = (self.truth[layer], &mut self.counts[layer]);
        self.gates.activated(deciding(&self.layers[layer]), h, m, &mut self.values);
        let n = self.values.len() / m;
        for (r, row) in self.values.chunks_exact(n).enumerate() {
            for (i, value) in row.iter().enumerate() {
                let active = u64::from(value.abs() > truth);
                let selected = u64::from(selection.is_none_or(|s| s.contains(r, i, n)));
                counts.active += active;
                counts.selected += selected;
                counts.both += active & selected;
            }
        }
        counts.all += self.values.len() as u64;
    }
}

/// How many of a token's active neurons were active for the token before it.
pub struct Overlap {
    /// Neurons of a layer.
    neurons: usize,
    /// Active and, of these, active before; summed over tokens, per layer.
    counts: Vec<(u64, u64)>,
}

impl Overlap {
    /// Counts nothing yet.
    pub fn new(layers: usize, neurons: usize) -> Self {
        Overlap { neurons, counts: vec![(0, 0); layers] }
    }

    /// Per layer; 1 where nothing was active.
    pub fn per_layer(&self) -> Vec<f64> {
        let ratio = |&(active, both): &(u64, u64)| if active == 0 { 1.0 } else { both as f64 / active as f64 };
        self.counts.iter().map(ratio).collect()
    }
}

impl Observer for Overlap {
    fn mlp(&mut self, layer: usize, _: &[f32], _: usize, selection: Option<&Selection>) {
        let Some(selection) = selection else { return };
        let (words, counts) = (self.neurons.div_ceil(64), &mut self.counts[layer]);
        let rows = selection.masks.chunks_exact(words);
        for (before, now) in rows.clone().zip(rows.skip(1)) {
            for (before, now) in before.iter().zip(now) {
                counts.0 += u64::from(now.count_ones());
                counts.1 += u64::from((before & now).count_ones());
            }
        }
    }
}
