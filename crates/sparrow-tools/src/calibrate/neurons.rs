//! Calibration of selectors of neurons: MLP inputs and their moments, the scores they give, and thresholds on these.

use sparrow::internals::backend::{ActiveNeurons, Observer, Point, Scorer, Threshold, is_relu_family};
use sparrow::{Cpu, Error, Model, Result};
use sparrow_kernels::{DType, LinearPart, Matrix, encode};

use super::closed_form::InputMoments;
use super::gates::Gates;
use super::sample::{Sample, quantile};

/// Bytes of MLP inputs kept, over all layers; the tokens kept are spread evenly over the text.
const SAMPLE_BYTES: usize = 1 << 30;
/// Scores kept per layer to take quantiles of: good to about 0.1 %.
const SCORES: usize = 1 << 20;
/// Tokens whose scores give a layer's thresholds.
const SCORED_TOKENS: usize = 4096;
/// Tokens scored together.
const CHUNK: usize = 256;

/// MLP inputs of a sample of tokens, and second moments over all: at most 1 GiB and 8·hidden² bytes a layer (16·hidden²
/// with look-ahead).
pub(crate) struct NeuronSamples<'a> {
    cpu: &'a Cpu,
    hidden: usize,
    /// Every how many tokens one is kept.
    stride: usize,
    look_ahead: bool,
    moments: bool,
    /// Tokens of a window, whose first is not kept.
    window: Option<usize>,
    layers: Vec<LayerSamples>,
    transposed: [Vec<f32>; 2],
    product: Vec<f32>,
}

/// Of one layer.
#[derive(Default)]
pub(crate) struct LayerSamples {
    hidden: usize,
    /// MLP inputs, `[rows, hidden]`.
    pub inputs: Vec<f32>,
    /// Inputs of the attention before, `[rows, hidden]`; empty without look-ahead.
    ahead: Vec<f32>,
    /// Of the last tokens seen, until the MLP is.
    pending: Vec<f32>,
    tokens: usize,
    moments: Option<InputMoments>,
}

impl LayerSamples {
    /// Tokens kept.
    pub fn rows(&self) -> usize {
        self.inputs.len() / self.hidden
    }

    /// What the predictor reads, `[rows, hidden]`.
    pub fn predictor_inputs(&self) -> &[f32] {
        if self.ahead.is_empty() { &self.inputs } else { &self.ahead }
    }

    /// Second moments per token.
    pub fn moments(&self) -> InputMoments {
        let mut mean = self.moments.clone().unwrap_or(InputMoments { predictor: Vec::new(), cross: None });
        let tokens = self.tokens.max(1) as f64;
        mean.predictor.iter_mut().chain(mean.cross.iter_mut().flatten()).for_each(|v| *v /= tokens);
        mean
    }
}

impl<'a> NeuronSamples<'a> {
    /// For a text of `tokens`; with second moments if `moments` are wanted.
    pub fn new(cpu: &'a Cpu, layers: usize, hidden: usize, tokens: usize, moments: bool, look_ahead: bool) -> Self {
        let row = hidden * size_of::<f32>() * layers * if look_ahead { 2 } else { 1 };
        let stride = tokens.div_ceil((SAMPLE_BYTES / row).max(1)).max(1);
        let layers = (0..layers).map(|_| LayerSamples { hidden, ..LayerSamples::default() }).collect();
        let product = vec![0.0; if moments { hidden * hidden } else { 0 }];
        NeuronSamples {
            cpu,
            hidden,
            stride,
            look_ahead,
            moments,
            window: None,
            layers,
            transposed: Default::default(),
            product,
        }
    }

    /// Without the first token of every window, whose activations are like those of no other.
    pub fn without_first_of(self, window: usize) -> Self {
        NeuronSamples { window: Some(window).filter(|&window| window > 1), ..self }
    }

    /// What was collected, by layer.
    ///
    /// # Errors
    /// If the model's activations are not finite, or nothing was seen.
    pub fn finish(self) -> Result<Vec<LayerSamples>> {
        for (l, layer) in self.layers.iter().enumerate() {
            if layer.inputs.iter().chain(&layer.ahead).any(|v| !v.is_finite()) {
                return Err(Error::option("text", format!("the activations of layer {l} are not finite on this text")));
            }
        }
        Ok(self.layers)
    }

    /// `sum += xᵀ·z`, both `[m, hidden]`.
    fn add_product(&mut self, x: &[f32], z: &[f32], m: usize, sum: &mut [f64]) {
        let hidden = self.hidden;
        for (from, to) in [(x, 0), (z, 1)] {
            let to = &mut self.transposed[to];
            to.resize(from.len(), 0.0);
            for (r, row) in from.chunks_exact(hidden).enumerate() {
                row.iter().enumerate().for_each(|(i, &v)| to[i * m + r] = v);
            }
        }
        // As a linear layer whose weights are the transposed activations themselves.
        let mut bytes = vec![0; z.len() * 4];
        encode(DType::F32, &self.transposed[1], &mut bytes);
        let weights = Matrix::new(DType::F32, hidden, m, &bytes);
        let part = LinearPart { weights: weights.into(), bias: None, out: &mut self.product };
        self.cpu.compute.linear(&self.transposed[0], hidden, &mut [part]);
        sum.iter_mut().zip(&self.product).for_each(|(s, &p)| *s += f64::from(p));
    }
}

impl Observer for NeuronSamples<'_> {
    fn see(&mut self, layer: usize, point: Point, values: &[f32], _: usize) {
        if self.look_ahead && point == Point::AttentionInput {
            let pending = &mut self.layers[layer].pending;
            pending.clear();
            pending.extend_from_slice(values);
        }
    }

    fn mlp(&mut self, layer: usize, h: &[f32], m: usize, _: Option<ActiveNeurons>) {
        let (hidden, stride) = (self.hidden, self.stride);
        let mut samples = std::mem::take(&mut self.layers[layer]);
        for (r, row) in h.chunks_exact(hidden).enumerate() {
            let token = samples.tokens + r;
            if token.is_multiple_of(stride) && !self.window.is_some_and(|window| token.is_multiple_of(window)) {
                samples.inputs.extend_from_slice(row);
                if self.look_ahead {
                    samples.ahead.extend_from_slice(&samples.pending[r * hidden..(r + 1) * hidden]);
                }
            }
        }
        samples.tokens += m;
        if self.moments {
            let zeros = || vec![0.0; hidden * hidden];
            let look_ahead = self.look_ahead;
            let moments = samples
                .moments
                .get_or_insert_with(|| InputMoments { predictor: zeros(), cross: look_ahead.then(zeros) });
            let z = if look_ahead { samples.pending.as_slice() } else { h };
            self.add_product(z, z, m, &mut moments.predictor);
            if let Some(cross) = &mut moments.cross {
                self.add_product(h, z, m, cross);
            }
        }
        self.layers[layer] = samples;
    }
}

/// Scores of a sample of a layer's neurons and tokens.
#[derive(Debug, Clone)]
pub struct ScoreCurve {
    /// Of those truly active, ascending.
    active: Vec<f32>,
    /// Of all, ascending.
    all: Vec<f32>,
}

impl ScoreCurve {
    /// Scores the sampled tokens, by the gate times `weights` where there are any; `true_active` is the fraction of neurons that count as truly active where the activation
    /// has no exact zeros. Also returns the `|act(gate)|` above which a neuron is truly active.
    pub(crate) fn new(
        cpu: &Cpu,
        model: &Model,
        layer: usize,
        samples: &LayerSamples,
        scorer: &Scorer,
        weights: Option<&[f32]>,
        true_active: f64,
    ) -> (Self, f32) {
        let activation = model.spec.activation;
        let gate = model.weights.layers[layer].mlp.deciding();
        let (n, hidden) = (gate.outputs(), samples.hidden);
        let relu = is_relu_family(activation);
        let (mut values, mut scores) = (Vec::new(), Vec::new());
        let (mut low, mut signs) = (Vec::new(), Vec::new());
        let stride = samples.rows().div_ceil(SCORED_TOKENS).max(1);
        let chosen: Vec<usize> = (0..samples.rows()).step_by(stride).collect();
        let rows = |of: &[f32], chosen: &[usize]| -> Vec<f32> {
            chosen.iter().flat_map(|r| &of[r * hidden..(r + 1) * hidden]).copied().collect()
        };
        let mut truth = 0.0;
        let gates = Gates::new(cpu, activation);
        let (mut active, mut all) = (Sample::new(SCORES), Sample::new(SCORES));
        for (c, chosen) in chosen.chunks(CHUNK).enumerate() {
            let m = chosen.len();
            let h = rows(&samples.inputs, chosen);
            gates.activated(gate, &h, m, &mut values);
            values.iter_mut().for_each(|v| *v = v.abs());
            if c == 0 && !relu {
                let mut sorted = values.clone();
                sorted.sort_unstable_by(f32::total_cmp);
                truth = quantile(&sorted, 1.0 - true_active);
            }
            scores.resize(m * n, 0.0);
            match scorer {
                Scorer::Gate(_) => {
                    scores.copy_from_slice(&values);
                    if let Some(weights) = weights {
                        let rows = scores.chunks_exact_mut(n);
                        rows.for_each(|row| row.iter_mut().zip(weights).for_each(|(s, w)| *s *= w));
                    }
                }
                Scorer::LowRank(predictors) => {
                    let predictor = &predictors[layer];
                    cpu.predict(predictor, &rows(samples.predictor_inputs(), chosen), &mut low, &mut scores);
                    if !relu && !predictor.logits {
                        cpu.compute.activate(activation, &mut scores);
                        scores.iter_mut().for_each(|s| *s = s.abs());
                    }
                }
                Scorer::Signs(bits) => cpu.count_signs(&bits[layer], &h, &mut signs, &mut scores),
                Scorer::Masks(_) => unreachable!("masks that are given are not calibrated"),
            }
            active.extend(values.iter().zip(&scores).filter(|(v, _)| **v > truth).map(|(_, &s)| s));
            // A stride coprime to most sizes walks over all neurons.
            all.extend(scores.iter().copied().step_by(7));
        }
        if matches!(scorer, Scorer::Gate(_)) && weights.is_none() {
            // To find all of them is to go by the truth itself, not by the smallest that the sample has.
            active.extend([truth.next_up()]);
        }
        (ScoreCurve { active: active.sorted(), all: all.sorted() }, truth)
    }

    /// The score that a fraction `recall` of the truly active neurons exceeds.
    pub fn threshold_for_recall(&self, recall: f64) -> f32 {
        quantile(&self.active, 1.0 - recall).next_down()
    }

    /// The score that a fraction `active` of all neurons exceeds.
    pub fn threshold_for_active(&self, active: f64) -> f32 {
        if active >= 1.0 { f32::MIN } else { quantile(&self.all, 1.0 - active) }
    }

    /// Neurons with a score above `threshold` ÷ all.
    pub fn active_fraction(&self, threshold: f32) -> f64 {
        let below = self.all.partition_point(|&s| s <= threshold);
        (self.all.len() - below) as f64 / self.all.len().max(1) as f64
    }

    /// How many scores lie in each of `bins` equal parts of the range between the extreme ones: all, truly active.
    pub fn histogram(&self, bins: usize) -> (f32, f32, Vec<f64>, Vec<f64>) {
        let (low, high) = (quantile(&self.all, 0.001), quantile(&self.all, 0.999));
        let edge = |i: usize| low + (high - low) * i as f32 / bins as f32;
        let counts = |sorted: &[f32]| -> Vec<f64> {
            let below = |t: f32| sorted.partition_point(|&s| s < t);
            (0..bins).map(|i| (below(edge(i + 1)) - below(edge(i))) as f64 / sorted.len().max(1) as f64).collect()
        };
        (low, high, counts(&self.all), counts(&self.active))
    }
}

/// Fixed thresholds of all layers that keep a fraction `active` of the neurons. Where truly active neurons are known
/// exactly (ReLU), every layer finds the same fraction of them, so that layers keep as much as they need. Elsewhere every
/// layer keeps the same fraction.
pub fn thresholds_for_active(curves: &[ScoreCurve], truth_is_zero: bool, active: f64) -> Vec<Threshold> {
    let mean = |recall: f64| {
        let fraction = |c: &ScoreCurve| c.active_fraction(c.threshold_for_recall(recall));
        curves.iter().map(fraction).sum::<f64>() / curves.len() as f64
    };
    if !truth_is_zero || mean(1.0) <= active {
        return curves.iter().map(|c| Threshold::Fixed(c.threshold_for_active(active))).collect();
    }
    let (mut low, mut high) = (0.0, 1.0);
    for _ in 0..40 {
        let middle = (low + high) / 2.0;
        if mean(middle) > active { high = middle } else { low = middle }
    }
    thresholds_for_recall(curves, low)
}

/// Fixed thresholds with which every layer finds a fraction `recall` of its truly active neurons.
pub fn thresholds_for_recall(curves: &[ScoreCurve], recall: f64) -> Vec<Threshold> {
    curves.iter().map(|c| Threshold::Fixed(c.threshold_for_recall(recall))).collect()
}
