//! The loss, its gradient and the F1 score of a low-rank classifier `s = B·(A·x) + bias`.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use sparrow::internals::backend::{Predictor, is_relu_family};
use sparrow::internals::tensor::Tensor;
use sparrow::internals::weights::Linear;
use sparrow::{Cpu, Result};
use sparrow_kernels::{Activation, DType, decode, encode, mask_words};
use sparrow_linalg::{View, product};

use crate::calibrate::{Gates, LayerSamples};

/// Tokens whose gates are computed together.
const CHUNK: usize = 256;

/// Buckets of scores that F1's threshold is sought among.
const BUCKETS: usize = 1024;

/// Sizes; parameters are one vector: `A` `[rank, inputs]`, `B` `[neurons, rank]`, bias `[neurons]`.
pub(super) struct Shape {
    pub rank: usize,
    pub inputs: usize,
    pub neurons: usize,
}

impl Shape {
    pub fn parameters(&self) -> usize {
        self.rank * self.inputs + self.neurons * self.rank + self.neurons
    }

    fn split<'a>(&self, parameters: &'a [f32]) -> (View<'a>, View<'a>, &'a [f32]) {
        let (a, rest) = parameters.split_at(self.rank * self.inputs);
        let (b, bias) = rest.split_at(self.neurons * self.rank);
        (View::new(a, self.rank, self.inputs), View::new(b, self.neurons, self.rank), bias)
    }

    /// The classifier that `parameters` are.
    pub fn predictor(&self, parameters: &[f32]) -> Result<Predictor> {
        let (a, rest) = parameters.split_at(self.rank * self.inputs);
        let (b, bias) = rest.split_at(self.neurons * self.rank);
        let tensor = |values: &[f32], rows, cols| {
            Tensor::in_memory(DType::F16, rows, cols, |out| encode(DType::F16, values, out))
        };
        let (a, b) = (tensor(a, self.rank, self.inputs)?, tensor(b, self.neurons, self.rank)?);
        Ok(Predictor { a, b, bias: bias.to_vec(), logits: true })
    }
}

/// Inputs of a layer's predictor and which neurons were active for each.
pub(super) struct Examples<'a> {
    /// `[rows, width]`.
    inputs: &'a [f32],
    width: usize,
    /// `[rows, ceil(neurons / 64)]`.
    active: Vec<u64>,
    neurons: usize,
    /// Weight of an active neuron in the loss: inactive ÷ active.
    positive_weight: f32,
}

impl<'a> Examples<'a> {
    /// Every sampled token of a layer; a neuron is active where `|act(gate)|` is above `truth`.
    pub fn new(cpu: &Cpu, gate: &Linear, activation: Activation, samples: &'a LayerSamples, truth: f32) -> Self {
        let (neurons, rows) = (gate.outputs(), samples.rows());
        let width = samples.inputs.len() / rows.max(1);
        let words = mask_words(neurons);
        let mut active = vec![0; rows * words];
        let (gates, mut values) = (Gates::new(cpu, activation), Vec::new());
        for (h, active) in samples.inputs.chunks(CHUNK * width).zip(active.chunks_mut(CHUNK * words)) {
            gates.activated(gate, h, h.len() / width, &mut values);
            for (values, mask) in values.chunks_exact(neurons).zip(active.chunks_exact_mut(words)) {
                cpu.compute.mask_above(values, truth, true, mask);
            }
        }
        let positive = sparrow_kernels::count_ones(&active) as f32;
        let positive_weight = ((rows * neurons) as f32 - positive) / positive.max(1.0);
        let inputs = samples.predictor_inputs();
        Examples { inputs, width, active, neurons, positive_weight: positive_weight.clamp(0.1, 100.0) }
    }

    /// Rows to learn from, and the last ones, a share of `validation`, to check with.
    pub fn split(&self, validation: f64) -> (Vec<usize>, Vec<usize>) {
        let rows = self.inputs.len() / self.width;
        let at = rows - ((rows as f64 * validation) as usize).clamp(1, rows.max(1));
        ((0..at.max(1)).collect(), (at..rows).collect())
    }

    /// `rows` in an order that depends on `seed` only.
    pub fn shuffled(&self, rows: &[usize], seed: u64) -> Vec<usize> {
        let (mut order, mut rng) = (rows.to_vec(), ChaCha8Rng::seed_from_u64(seed));
        for i in (1..order.len()).rev() {
            order.swap(i, (rng.next_u64() % (i as u64 + 1)) as usize);
        }
        order
    }

    /// The closed form's parameters, scaled so that its scores have the spread of log-odds.
    pub fn scaled(&self, shape: &Shape, predictor: &Predictor, rows: &[usize]) -> Vec<f32> {
        let mut parameters = vec![0.0; shape.parameters()];
        let (a, rest) = parameters.split_at_mut(shape.rank * shape.inputs);
        let (b, bias) = rest.split_at_mut(shape.neurons * shape.rank);
        decode(predictor.a.dtype(), predictor.a.bytes(), a);
        decode(predictor.b.dtype(), predictor.b.bytes(), b);
        bias.copy_from_slice(&predictor.bias);
        let (scores, ..) = self.scores(shape, &parameters, &rows[..rows.len().min(CHUNK)]);
        let scale = (3.0 / root_mean_square(&scores)) as f32;
        parameters[shape.rank * shape.inputs..].iter_mut().for_each(|p| *p *= scale);
        parameters
    }

    /// Scores `[rows, neurons]`, `A·x` `[rows, rank]` and the inputs `[rows, width]`.
    fn scores(&self, shape: &Shape, parameters: &[f32], rows: &[usize]) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
        let (a, b, bias) = shape.split(parameters);
        let m = rows.len();
        let x = self.inputs_of(rows);
        let (mut low, mut scores) = (vec![0.0; m * shape.rank], vec![0.0; m * shape.neurons]);
        product(View::new(&x, m, self.width), a.transposed(), &mut low);
        product(View::new(&low, m, shape.rank), b.transposed(), &mut scores);
        for row in scores.chunks_exact_mut(shape.neurons) {
            row.iter_mut().zip(bias).for_each(|(s, b)| *s += b);
        }
        (scores, low, x)
    }

    fn inputs_of(&self, rows: &[usize]) -> Vec<f32> {
        rows.iter().flat_map(|r| &self.inputs[r * self.width..(r + 1) * self.width]).copied().collect()
    }

    fn is_active(&self, row: usize, neuron: usize) -> bool {
        self.active[row * mask_words(self.neurons) + neuron / 64] >> (neuron % 64) & 1 == 1
    }

    /// The mean loss over `rows` and neurons, by parameter.
    pub fn gradient(&self, shape: &Shape, parameters: &[f32], rows: &[usize]) -> Vec<f32> {
        let m = rows.len();
        let (mut by_score, low, x) = self.scores(shape, parameters, rows);
        let scale = 1.0 / (m * shape.neurons) as f32;
        for (&row, scores) in rows.iter().zip(by_score.chunks_exact_mut(shape.neurons)) {
            for (i, s) in scores.iter_mut().enumerate() {
                let probability = 1.0 / (1.0 + (-*s).exp());
                *s = scale
                    * if self.is_active(row, i) { self.positive_weight * (probability - 1.0) } else { probability };
            }
        }
        let (_, b, _) = shape.split(parameters);
        let mut gradient = vec![0.0; parameters.len()];
        let (by_a, rest) = gradient.split_at_mut(shape.rank * shape.inputs);
        let (by_b, by_bias) = rest.split_at_mut(shape.neurons * shape.rank);
        let scores = View::new(&by_score, m, shape.neurons);
        product(scores.transposed(), View::new(&low, m, shape.rank), by_b);
        let mut by_low = vec![0.0; m * shape.rank];
        product(scores, b, &mut by_low);
        product(View::new(&by_low, m, shape.rank).transposed(), View::new(&x, m, self.width), by_a);
        for row in by_score.chunks_exact(shape.neurons) {
            by_bias.iter_mut().zip(row).for_each(|(sum, g)| *sum += g);
        }
        gradient
    }

    /// The harmonic mean of recall and precision over `rows` of a classifier, at the threshold where it is largest.
    pub fn f1(&self, shape: &Shape, parameters: &[f32], rows: &[usize]) -> f64 {
        self.best_f1(rows, |chunk| self.scores(shape, parameters, chunk).0)
    }

    /// The same of the closed form, whose scores are predicted gate values.
    pub fn closed_form_f1(&self, cpu: &Cpu, predictor: &Predictor, activation: Activation, rows: &[usize]) -> f64 {
        let mut low = Vec::new();
        self.best_f1(rows, |chunk| {
            let mut scores = vec![0.0; chunk.len() * self.neurons];
            cpu.predict(predictor, &self.inputs_of(chunk), &mut low, &mut scores);
            if !is_relu_family(activation) {
                cpu.compute.activate(activation, &mut scores);
                scores.iter_mut().for_each(|s| *s = s.abs());
            }
            scores
        })
    }

    /// `scores` gives the scores of rows, `[rows, neurons]`.
    fn best_f1(&self, rows: &[usize], mut scores: impl FnMut(&[usize]) -> Vec<f32>) -> f64 {
        /// Buckets span so many root mean squares of the first scores to either side.
        const SPAN: f64 = 5.0;
        // Inactive and active neurons by score.
        let mut counts = vec![[0u64; 2]; BUCKETS];
        let mut range = None;
        for chunk in rows.chunks(CHUNK) {
            let scores = scores(chunk);
            let range = *range.get_or_insert_with(|| (SPAN * root_mean_square(&scores)) as f32);
            for (&row, scores) in chunk.iter().zip(scores.chunks_exact(self.neurons)) {
                for (i, &s) in scores.iter().enumerate() {
                    let bucket = ((s / range + 1.0) / 2.0 * BUCKETS as f32).clamp(0.0, BUCKETS as f32 - 1.0);
                    counts[bucket as usize][usize::from(self.is_active(row, i))] += 1;
                }
            }
        }
        let active: u64 = counts.iter().map(|c| c[1]).sum();
        let (mut selected, mut found, mut best) = (0, 0, 0.0f64);
        for [inactive, active_here] in counts.into_iter().rev() {
            selected += inactive + active_here;
            found += active_here;
            best = best.max(2.0 * found as f64 / (selected + active).max(1) as f64);
        }
        best
    }
}

fn root_mean_square(scores: &[f32]) -> f64 {
    let square = scores.iter().map(|&s| f64::from(s) * f64::from(s)).sum::<f64>() / scores.len().max(1) as f64;
    square.sqrt().max(1e-6)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The gradient against differences of the loss.
    #[test]
    fn the_gradient_is_that_of_the_loss() {
        let shape = Shape { rank: 2, inputs: 3, neurons: 5 };
        let value = |i: usize| ((i * 37 % 23) as f32 - 11.0) / 9.0;
        let inputs: Vec<f32> = (0..12).map(value).collect();
        let examples = Examples {
            inputs: &inputs,
            width: 3,
            active: vec![0b10110, 0b00001, 0, 0b11111],
            neurons: 5,
            positive_weight: 2.5,
        };
        let rows = [0, 1, 2, 3];
        let parameters: Vec<f32> = (0..shape.parameters()).map(|i| value(i + 5)).collect();
        let loss = |parameters: &[f32]| -> f64 {
            let (scores, ..) = examples.scores(&shape, parameters, &rows);
            let term = |(i, &s): (usize, &f32)| {
                let s = f64::from(s);
                match examples.is_active(i / 5, i % 5) {
                    true => 2.5 * (1.0 + (-s).exp()).ln(),
                    false => (1.0 + s.exp()).ln(),
                }
            };
            scores.iter().enumerate().map(term).sum::<f64>() / scores.len() as f64
        };
        let gradient = examples.gradient(&shape, &parameters, &rows);
        for i in 0..parameters.len() {
            let at = |step: f32| {
                let mut moved = parameters.clone();
                moved[i] += step;
                loss(&moved)
            };
            let numeric = (at(1e-2) - at(-1e-2)) / 2e-2;
            assert!((f64::from(gradient[i]) - numeric).abs() < 2e-4, "{i}: {} {numeric}", gradient[i]);
        }
    }

    #[test]
    fn f1_is_one_for_a_perfect_classifier_and_known_for_a_bad_one() {
        let shape = Shape { rank: 1, inputs: 1, neurons: 2 };
        let inputs = [1.0, 1.0];
        let examples =
            Examples { inputs: &inputs, width: 1, active: vec![0b01, 0b01], neurons: 2, positive_weight: 1.0 };
        // A = 1, B = (5, −5).
        assert_eq!(examples.f1(&shape, &[1.0, 5.0, -5.0, 0.0, 0.0], &[0, 1]), 1.0);
        // The wrong one is preferred: all must be selected, half of them rightly.
        assert!((examples.f1(&shape, &[1.0, -5.0, 5.0, 0.0, 0.0], &[0, 1]) - 2.0 / 3.0).abs() < 1e-12);
    }
}
