//! What steps computed and read, and where their time went.

use super::clock::{Clock, Component};

/// Counts and times steps; operations report to it as they go.
#[derive(Debug)]
pub struct Meter {
    /// Where time goes, while profiling.
    pub clock: Clock,
    /// Totals over all steps that are complete.
    pub stats: Stats,
    /// Of the current step.
    step: Stats,
    /// Of each row of the current step: what was computed of what there was.
    rows: Vec<(u64, u64)>,
}

impl Meter {
    /// Nothing counted yet; with room for steps of `rows` rows.
    pub fn new(layers: usize, rows: usize) -> Self {
        let stats = Stats::new(layers);
        Meter { clock: Clock::default(), step: stats.clone(), stats, rows: Vec::with_capacity(rows) }
    }

    /// A step of `rows` rows begins.
    pub fn begin(&mut self, rows: usize) {
        self.rows.clear();
        self.rows.resize(rows, (0, 0));
        self.step.reset();
        self.clock.begin_step();
    }

    /// The step is complete: what was counted since it began counts.
    pub fn complete(&mut self) {
        for (total, counts) in self.stats.layers.iter_mut().zip(&self.step.layers) {
            *total = (total.0 + counts.0, total.1 + counts.1);
        }
        self.stats.layer_bytes += self.step.layer_bytes;
        self.stats.store_bytes += self.step.store_bytes;
        self.stats.steps += 1;
    }

    /// What ran since the last lap was `component`.
    #[inline]
    pub fn lap(&mut self, component: Component) {
        self.clock.lap(component);
    }

    /// Counts, for each row in turn, what was active of `of` in `layer`.
    pub fn active(&mut self, layer: usize, active: impl Iterator<Item = u64>, of: u64) {
        for (row, active) in self.rows.iter_mut().zip(active) {
            *row = (row.0 + active, row.1 + of);
            let counts = &mut self.step.layers[layer];
            *counts = (counts.0 + active, counts.1 + of);
        }
    }

    /// Counts bytes of weights read in layers.
    pub fn read(&mut self, bytes: u64) {
        self.step.layer_bytes += bytes;
    }

    /// Counts bytes of weights that came from where they are stored.
    pub fn stored(&mut self, bytes: u64) {
        self.step.store_bytes += bytes;
    }

    /// Of each row of the current step: what was computed of what there was.
    pub fn rows(&self) -> &[(u64, u64)] {
        &self.rows
    }
}

/// What the steps since the last reset computed and read.
#[derive(Debug, Clone)]
pub struct Stats {
    /// Per layer: what was computed and what there was, summed over tokens; neurons for a selector of neurons, weights for
    /// one of inputs or blocks.
    layers: Vec<(u64, u64)>,
    /// Bytes read in decoder layers, for selecting included.
    pub layer_bytes: u64,
    /// MLP bytes copied or read into the pools of the weight cache, or streamed past them.
    pub store_bytes: u64,
    /// Calls of the forward pass.
    pub steps: u64,
}

/// Active ÷ all; 1 where nothing was selected.
pub fn fraction((active, of): (u64, u64)) -> f64 {
    if of == 0 { 1.0 } else { active as f64 / of as f64 }
}

impl Stats {
    fn new(layers: usize) -> Self {
        Stats { layers: vec![(0, 0); layers], layer_bytes: 0, store_bytes: 0, steps: 0 }
    }

    /// Starts counting anew.
    pub fn reset(&mut self) {
        self.layers.fill((0, 0));
        (self.layer_bytes, self.store_bytes, self.steps) = (0, 0, 0);
    }

    /// What was active ÷ all, per layer, averaged over tokens: neurons of the MLP, or weights of the layer for a selector
    /// of inputs or blocks; 1 where nothing was selected.
    pub fn active_fraction_per_layer(&self) -> Vec<f64> {
        self.layers.iter().copied().map(fraction).collect()
    }

    /// The same, averaged over layers.
    pub fn active_fraction(&self) -> f64 {
        let per_layer = self.active_fraction_per_layer();
        per_layer.iter().sum::<f64>() / per_layer.len() as f64
    }
}
