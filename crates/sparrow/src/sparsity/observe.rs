//! What is collected from a model as it reads a text: second moments of the MLP inputs, sizes of gate values, and how
//! well a selector finds the neurons that are truly active.

use serde::{Deserialize, Serialize};
use sparrow_kernels::{Activation, DType, LinearPart, Matrix, encode};

use super::predictor::Predictor;
use super::selector::{Observer, Selection, is_relu_family};
use crate::backend::Cpu;
use crate::model::weights::{LayerWeights, Linear};

/// Values kept per layer to take quantiles of: bounds memory to 4 MiB a layer, with quantiles good to about 0.1 %.
const SAMPLES: usize = 1 << 20;

/// The layer whose values decide activity: the gate, or the up projection of an ungated MLP.
pub(crate) fn deciding(layer: &LayerWeights) -> &Linear {
    layer.mlp.gate.as_ref().unwrap_or(&layer.mlp.up)
}

/// Gate values of observed MLP inputs, activated or not.
struct Gates<'a> {
    cpu: &'a Cpu,
    layers: &'a [LayerWeights],
    activation: Activation,
    values: Vec<f32>,
}

impl<'a> Gates<'a> {
    fn new(cpu: &'a Cpu, layers: &'a [LayerWeights], activation: Activation) -> Self {
        Gates { cpu, layers, activation, values: Vec::new() }
    }

    /// `act(gate·h)`, `[m, intermediate]`.
    fn activated(&mut self, layer: usize, h: &[f32], m: usize) -> &[f32] {
        let gate = deciding(&self.layers[layer]);
        self.values.resize(m * gate.weight.rows(), 0.0);
        self.cpu.linear(h, m, [(gate, &mut self.values)]);
        self.cpu.compute.activate(self.activation, &mut self.values);
        &self.values
    }
}

/// First pass of calibration: `E[h·hᵀ]` of each layer's MLP input (8·hidden² bytes a layer), and a sample of `|act(gate)|`.
pub(crate) struct Moments<'a> {
    gates: Gates<'a>,
    covariance: Vec<Vec<f64>>,
    tokens: Vec<usize>,
    samples: Vec<Vec<f32>>,
    transposed: Vec<f32>,
    product: Vec<f32>,
}

impl<'a> Moments<'a> {
    pub(crate) fn new(cpu: &'a Cpu, layers: &'a [LayerWeights], activation: Activation, hidden: usize) -> Self {
        Moments {
            gates: Gates::new(cpu, layers, activation),
            covariance: vec![vec![0.0; hidden * hidden]; layers.len()],
            tokens: vec![0; layers.len()],
            samples: vec![Vec::new(); layers.len()],
            transposed: Vec::new(),
            product: vec![0.0; hidden * hidden],
        }
    }

    /// `E[h·hᵀ]` of a layer, `[hidden, hidden]`.
    pub(crate) fn covariance(&self, layer: usize) -> Vec<f64> {
        self.covariance[layer].iter().map(|v| v / self.tokens[layer].max(1) as f64).collect()
    }

    /// The value below which a fraction `quantile` of a layer's `|act(gate)|` lies.
    pub(crate) fn gate_quantile(&mut self, layer: usize, quantile: f64) -> f32 {
        sample_quantile(&mut self.samples[layer], quantile)
    }
}

impl Observer for Moments<'_> {
    fn mlp(&mut self, layer: usize, h: &[f32], m: usize, _: Option<&Selection>) {
        let hidden = h.len() / m;
        self.transposed.resize(h.len(), 0.0);
        for (r, row) in h.chunks_exact(hidden).enumerate() {
            row.iter().enumerate().for_each(|(i, &v)| self.transposed[i * m + r] = v);
        }
        // HᵀH as a linear layer whose weights are the transposed activations themselves.
        let mut bytes = vec![0; h.len() * 4];
        encode(DType::F32, &self.transposed, &mut bytes);
        let weights = Matrix::new(DType::F32, hidden, m, &bytes);
        let part = LinearPart { weights, bias: None, out: &mut self.product };
        self.gates.cpu.compute.linear(&self.transposed, hidden, &mut [part]);
        self.covariance[layer].iter_mut().zip(&self.product).for_each(|(c, &p)| *c += f64::from(p));
        self.tokens[layer] += m;
        // A stride coprime to most sizes walks over all neurons.
        let magnitudes = self.gates.activated(layer, h, m).iter().step_by(61).map(|v| v.abs());
        extend_bounded(&mut self.samples[layer], magnitudes);
    }
}

/// Second pass: the predictor's scores of the neurons that are truly active.
pub(crate) struct ActiveScores<'a> {
    gates: Gates<'a>,
    predictors: &'a [Predictor],
    truth: &'a [f32],
    scores: Vec<f32>,
    low_rank: Vec<f32>,
    samples: Vec<Vec<f32>>,
}

impl<'a> ActiveScores<'a> {
    pub(crate) fn new(
        cpu: &'a Cpu,
        layers: &'a [LayerWeights],
        activation: Activation,
        predictors: &'a [Predictor],
        truth: &'a [f32],
    ) -> Self {
        let gates = Gates::new(cpu, layers, activation);
        let (scores, low_rank, samples) = (Vec::new(), Vec::new(), vec![Vec::new(); layers.len()]);
        ActiveScores { gates, predictors, truth, scores, low_rank, samples }
    }

    /// The score that a fraction `recall` of a layer's truly active neurons exceeds.
    pub(crate) fn threshold(&mut self, layer: usize, recall: f64) -> f32 {
        sample_quantile(&mut self.samples[layer], 1.0 - recall).next_down()
    }
}

impl Observer for ActiveScores<'_> {
    fn mlp(&mut self, layer: usize, h: &[f32], m: usize, _: Option<&Selection>) {
        let (cpu, activation) = (self.gates.cpu, self.gates.activation);
        let truth = self.truth[layer];
        let values = self.gates.activated(layer, h, m);
        self.scores.resize(values.len(), 0.0);
        self.predictors[layer].scores(cpu, h, m, &mut self.low_rank, &mut self.scores);
        if !is_relu_family(activation) {
            cpu.compute.activate(activation, &mut self.scores);
            self.scores.iter_mut().for_each(|s| *s = s.abs());
        }
        let active = values.iter().zip(&self.scores).filter(|(v, _)| v.abs() > truth).map(|(_, &s)| s);
        extend_bounded(&mut self.samples[layer], active);
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
    truth: &'a [f32],
    counts: Vec<Counts>,
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
        Recall { gates: Gates::new(cpu, layers, activation), truth, counts: vec![Counts::default(); layers.len()] }
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
        let values = self.gates.activated(layer, h, m);
        let n = values.len() / m;
        for (r, row) in values.chunks_exact(n).enumerate() {
            for (i, value) in row.iter().enumerate() {
                let active = u64::from(value.abs() > truth);
                let selected = u64::from(selection.is_none_or(|s| s.contains(r, i, n)));
                counts.active += active;
                counts.selected += selected;
                counts.both += active & selected;
            }
        }
        counts.all += values.len() as u64;
    }
}

fn extend_bounded(samples: &mut Vec<f32>, values: impl Iterator<Item = f32>) {
    samples.extend(values.filter(|v| v.is_finite()));
    // Past the bound every second value goes: still a sample of the whole text.
    if samples.len() > SAMPLES {
        let mut keep = false;
        samples.retain(|_| {
            keep = !keep;
            keep
        });
    }
}

/// The value that a fraction `quantile` of the samples is below; 0 without samples.
fn sample_quantile(samples: &mut [f32], quantile: f64) -> f32 {
    if samples.is_empty() {
        return 0.0;
    }
    let at = ((samples.len() as f64 * quantile) as usize).min(samples.len() - 1);
    *samples.select_nth_unstable_by(at, f32::total_cmp).1
}
