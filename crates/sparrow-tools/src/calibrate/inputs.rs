//! Calibration of input thresholds: magnitudes of what enters each projection, and inputs to run single layers on.

use sparrow::internals::backend::{ActiveNeurons, Observer, Point, Projection};

use super::sample::{Sample, quantile};

/// Magnitudes kept per layer and place to take quantiles of.
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
    /// The magnitude below which a fraction `sparsity` of a projection's inputs lies.
    pub fn threshold(&self, layer: usize, projection: Projection, sparsity: f64) -> f32 {
        let place = match projection {
            Projection::Q | Projection::K | Projection::V => 0,
            Projection::O => 1,
            Projection::Gate | Projection::Up => 2,
            Projection::Down => 3,
        };
        match sparsity {
            0.0 => 0.0,
            _ => quantile(&self.magnitudes[layer][place], sparsity),
        }
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
