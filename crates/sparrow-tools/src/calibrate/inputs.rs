//! Calibration of input thresholds: magnitudes of what enters each projection, and inputs to run single layers on.

use sparrow::internals::backend::{ActiveNeurons, Observer, Point, Projection};

use super::sample::{Sample, quantile};

/// The sites of a layer: projections that read the same input.
pub(crate) const SITES: [&[Projection]; 4] = [
    &[Projection::Q, Projection::K, Projection::V],
    &[Projection::O],
    &[Projection::Gate, Projection::Up],
    &[Projection::Down],
];

/// Values of sites as those of projections.
pub(crate) fn by_projection<T: Copy>(sites: [T; 4]) -> [T; 7] {
    Projection::ALL.map(|projection| {
        let site = SITES.iter().position(|site| site.contains(&projection)).expect("sites have every projection");
        sites[site]
    })
}

/// Magnitudes kept per layer and site to take quantiles of.
const MAGNITUDES: usize = 1 << 17;

/// Of each layer: a sample of the magnitudes of the inputs of its projections, and the residual stream before it over the
/// first tokens.
pub(crate) struct InputSamples {
    /// Tokens whose residual stream is kept.
    kept: usize,
    layers: Vec<LayerInputs>,
    finite: bool,
}

struct LayerInputs {
    /// What enters q, k and v; o; gate and up; down.
    magnitudes: [Sample; 4],
    residual: Vec<f32>,
    tokens: usize,
}

/// Sorted magnitudes, and the residual stream `[tokens, hidden]` of the first tokens.
pub(crate) struct InputCalibration {
    magnitudes: Vec<[Vec<f32>; 4]>,
    pub residual: Vec<Vec<f32>>,
}

impl InputSamples {
    pub fn new(layers: usize, kept: usize) -> Self {
        let layer =
            |_| LayerInputs { magnitudes: [(); 4].map(|()| Sample::new(MAGNITUDES)), residual: Vec::new(), tokens: 0 };
        InputSamples { kept, layers: (0..layers).map(layer).collect(), finite: true }
    }

    /// What was collected; `None` if activations were not finite.
    pub fn finish(self) -> Option<InputCalibration> {
        let (magnitudes, residual) =
            self.layers.into_iter().map(|l| (l.magnitudes.map(Sample::sorted), l.residual)).unzip();
        self.finite.then_some(InputCalibration { magnitudes, residual })
    }

    fn add(&mut self, layer: usize, place: usize, values: &[f32]) {
        self.finite &= values.iter().all(|v| v.is_finite());
        // A stride coprime to most sizes walks over all inputs.
        self.layers[layer].magnitudes[place].extend(values.iter().step_by(7).map(|v| v.abs()));
    }
}

impl InputCalibration {
    /// The fraction of a site's inputs whose magnitude is above `threshold`.
    pub fn above(&self, layer: usize, site: usize, threshold: f32) -> f64 {
        let sorted = &self.magnitudes[layer][site];
        let below = sorted.partition_point(|&magnitude| magnitude <= threshold);
        1.0 - below as f64 / sorted.len().max(1) as f64
    }

    /// The largest magnitude of a site's inputs.
    pub fn largest(&self, layer: usize, site: usize) -> f32 {
        self.magnitudes[layer][site].last().copied().unwrap_or(0.0)
    }

    /// The magnitude below which half of a site's inputs lie that are not 0.
    pub fn middle(&self, layer: usize, site: usize) -> f32 {
        let sorted = &self.magnitudes[layer][site];
        quantile(&sorted[sorted.partition_point(|&magnitude| magnitude <= 0.0)..], 0.5)
    }
}

impl Observer for InputSamples {
    fn see(&mut self, layer: usize, point: Point, values: &[f32], m: usize) {
        match point {
            Point::Residual if layer < self.layers.len() => {
                let left = self.kept.saturating_sub(self.layers[layer].tokens).min(m);
                self.layers[layer].residual.extend_from_slice(&values[..values.len() / m * left]);
                self.layers[layer].tokens += left;
            }
            Point::AttentionInput => self.add(layer, 0, values),
            Point::Attended => self.add(layer, 1, values),
            Point::Neurons => self.add(layer, 3, values),
            _ => {}
        }
    }

    fn mlp(&mut self, layer: usize, h: &[f32], _: usize, _: Option<ActiveNeurons>) {
        self.add(layer, 2, h);
    }
}
