//! Calibration of input thresholds: magnitudes of what enters each projection, and inputs to run single layers on.

use std::sync::{Arc, Mutex};

use sparrow::internals::backend::{ActiveNeurons, Backend, InputNorms, Observer, Point, Projection};
use sparrow::internals::weights::{LayerWeights, Linear};
use sparrow::{Cpu, Model};

use super::sample::{Sample, quantile};

/// Values of sites as those of projections.
pub(crate) fn by_projection<T: Copy>(sites: [T; 4]) -> [T; 7] {
    Projection::ALL.map(|projection| sites[projection.site()])
}

/// The norms of the columns of each site's weights, one below the other.
pub(crate) fn column_norms(cpu: &Cpu, model: &Model) -> Vec<InputNorms> {
    let layers: Vec<_> = model.weights.layers.iter().map(|layer| Mutex::new((layer, InputNorms::default()))).collect();
    cpu.parallel(layers.len(), &|i| {
        let (layer, norms) = &mut *layers[i].lock().expect("each is locked once");
        let LayerWeights { q, k, v, o, mlp, .. } = layer;
        let gate = mlp.gate.as_ref();
        *norms =
            [norms_of([q, k, v]), norms_of([o]), norms_of(gate.into_iter().chain([&mlp.up])), norms_of([&mlp.down])];
    });
    layers.into_iter().map(|layer| layer.into_inner().expect("each was locked once").1).collect()
}

/// The norms of the columns of matrices, one below the other.
pub(super) fn norms_of<'a>(linears: impl IntoIterator<Item = &'a Linear>) -> Vec<f32> {
    let mut squares: Vec<f64> = Vec::new();
    for linear in linears {
        squares.resize(linear.inputs(), 0.0);
        let mut row = vec![0.0; linear.weight.cols()];
        for r in 0..linear.weight.rows() {
            linear.weight.decode(r..r + 1, &mut row);
            let squared = row.iter().map(|&w| f64::from(w).powi(2));
            match linear.input_major {
                true => squares[r] += squared.sum::<f64>(),
                false => squares.iter_mut().zip(squared).for_each(|(sum, square)| *sum += square),
            }
        }
    }
    squares.into_iter().map(|square| square.sqrt() as f32).collect()
}

/// Magnitudes kept per layer and site to take quantiles of.
const MAGNITUDES: usize = 1 << 17;

/// Of each layer: a sample of the magnitudes of the inputs of its projections, times the norms of their weights, and the residual
/// stream before it over the first tokens.
pub(crate) struct InputSamples {
    norms: Arc<[InputNorms]>,
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

/// Sorted weighted magnitudes, and the residual stream `[tokens, hidden]` of the first tokens.
pub(crate) struct InputCalibration {
    pub norms: Arc<[InputNorms]>,
    magnitudes: Vec<[Vec<f32>; 4]>,
    pub residual: Vec<Vec<f32>>,
}

impl InputSamples {
    /// Keeps the residual stream of so many tokens.
    pub fn new(norms: Arc<[InputNorms]>, kept: usize) -> Self {
        let layer =
            |_| LayerInputs { magnitudes: [(); 4].map(|()| Sample::new(MAGNITUDES)), residual: Vec::new(), tokens: 0 };
        let layers = (0..norms.len()).map(layer).collect();
        InputSamples { norms, kept, layers, finite: true }
    }

    /// What was collected; `None` if activations were not finite.
    pub fn finish(self) -> Option<InputCalibration> {
        let (magnitudes, residual) =
            self.layers.into_iter().map(|l| (l.magnitudes.map(Sample::sorted), l.residual)).unzip();
        self.finite.then_some(InputCalibration { norms: self.norms, magnitudes, residual })
    }

    fn add(&mut self, layer: usize, place: usize, values: &[f32]) {
        self.finite &= values.iter().all(|v| v.is_finite());
        let weighted = values.iter().zip(self.norms[layer][place].iter().cycle());
        // A stride coprime to most sizes walks over all inputs.
        self.layers[layer].magnitudes[place].extend(weighted.step_by(7).map(|(v, norm)| v.abs() * norm));
    }
}

impl InputCalibration {
    /// The fraction of a site's inputs whose weighted magnitude is above `threshold`.
    pub fn above(&self, layer: usize, site: usize, threshold: f32) -> f64 {
        let sorted = &self.magnitudes[layer][site];
        let below = sorted.partition_point(|&magnitude| magnitude <= threshold);
        1.0 - below as f64 / sorted.len().max(1) as f64
    }

    /// The largest weighted magnitude of a site's inputs.
    pub fn largest(&self, layer: usize, site: usize) -> f32 {
        self.magnitudes[layer][site].last().copied().unwrap_or(0.0)
    }

    /// The weighted magnitude below which half of a site's inputs lie that are not 0.
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
