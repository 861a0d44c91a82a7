//! What can be seen of a selector at work: how well it finds the neurons that are truly active, and how much the active
//! sets of successive tokens overlap.

use sparrow::Cpu;
use sparrow::internals::backend::{ActiveNeurons, Observer};
use sparrow::internals::record::PredictorQuality;
use sparrow::internals::weights::LayerWeights;
use sparrow_kernels::Activation;

use crate::calibrate::Gates;

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
    fn mlp(&mut self, layer: usize, h: &[f32], m: usize, active: Option<ActiveNeurons>) {
        let (truth, counts) = (self.truth[layer], &mut self.counts[layer]);
        self.gates.activated(self.layers[layer].mlp.deciding(), h, m, &mut self.values);
        let n = self.values.len() / m;
        for (r, row) in self.values.chunks_exact(n).enumerate() {
            for (i, value) in row.iter().enumerate() {
                let is_active = u64::from(value.abs() > truth);
                let selected = u64::from(active.is_none_or(|a| a.contains(r, i)));
                counts.active += is_active;
                counts.selected += selected;
                counts.both += is_active & selected;
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
    fn mlp(&mut self, layer: usize, _: &[f32], _: usize, active: Option<ActiveNeurons>) {
        let Some(active) = active else { return };
        let (words, counts) = (self.neurons.div_ceil(64), &mut self.counts[layer]);
        let rows = active.masks.chunks_exact(words);
        for (before, now) in rows.clone().zip(rows.skip(1)) {
            for (before, now) in before.iter().zip(now) {
                counts.0 += u64::from(now.count_ones());
                counts.1 += u64::from((before & now).count_ones());
            }
        }
    }
}
