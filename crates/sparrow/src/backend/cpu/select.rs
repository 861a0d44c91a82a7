//! The neurons selected in one layer for the rows of a step.

use sparrow_kernels::{Activation, LinearPart, count_ones, union_masks};

use super::buffers::Mlp;
use super::machine::{At, Cpu, GATHER_ROWS};
use super::threshold::{EVERYTHING, Of, mask};
use crate::backend::{
    ActiveNeurons, Component, GateNeurons, MaskCycle, Predictor, Scorer, Setup, SignBits, Step, Threshold,
};
use crate::weights::MlpWeights;

/// The active neurons of the rows of one layer and step, and the working memory to find them.
#[derive(Debug)]
pub struct Selection {
    scorer: Scorer,
    /// Neurons of a layer.
    neurons: usize,
    /// One bitmap per row, `[m, ceil(neurons / 64)]`.
    pub masks: Vec<u64>,
    /// Of the neurons active in any row.
    pub union: Vec<u64>,
    /// The same as ascending ids.
    pub ids: Vec<u32>,
    /// Only neurons that are zero anyway were left out.
    zeros_only: bool,
    scores: Vec<f32>,
    spare: Vec<f32>,
    scratch: Scratch,
}

/// What neurons are selected by.
pub struct Given<'a> {
    /// `[m, hidden]`.
    pub h: &'a [f32],
    /// Has the exact gate's values, or those of an ungated MLP's up projection, where these decide.
    pub mlp: &'a Mlp,
    /// Neurons that are preferred, if any are.
    pub preferred: Option<Preferred<'a>>,
}

/// Neurons that are in memory, where the others must score higher.
#[derive(Clone, Copy)]
pub struct Preferred<'a> {
    /// `[ceil(neurons / 64)]`.
    pub resident: &'a [u64],
    /// How many times as high.
    pub times: f32,
}

impl Preferred<'_> {
    /// Lowers the scores, magnitudes, of what is not in memory.
    fn lower_others(&self, scores: &mut [f32]) {
        for (i, score) in scores.iter_mut().enumerate() {
            if self.resident[i / 64] >> (i % 64) & 1 == 0 {
                *score /= self.times;
            }
        }
    }
}

/// What single scorers need beside.
#[derive(Debug)]
enum Scratch {
    None,
    /// `h·Aᵀ`, `[m, rank]`.
    LowRank(Vec<f32>),
    /// The sign bits of `h`, `[m, ceil(hidden / 64)]`.
    Signs(Vec<u64>),
}

impl Selection {
    /// Nothing selected yet.
    pub fn new(setup: &Setup, scorer: Scorer) -> Self {
        let Setup { spec, rows: m, .. } = *setup;
        let n = spec.intermediate_size;
        let scratch = match &scorer {
            Scorer::LowRank(_) => Scratch::LowRank(Vec::with_capacity(m * spec.hidden_size)),
            Scorer::Signs(_) => Scratch::Signs(Vec::with_capacity(m * spec.hidden_size.div_ceil(64))),
            Scorer::Gate(_) | Scorer::Masks(_) => Scratch::None,
        };
        let mut selection = Selection {
            scorer,
            neurons: n,
            masks: Vec::new(),
            union: Vec::new(),
            ids: Vec::with_capacity(n),
            zeros_only: false,
            scores: Vec::new(),
            spare: Vec::with_capacity(n),
            scratch,
        };
        selection.resize(m);
        selection
    }

    fn words(&self) -> usize {
        self.neurons.div_ceil(64)
    }

    fn resize(&mut self, m: usize) {
        let words = self.words();
        self.masks.resize(m * words, 0);
        self.union.resize(words, 0);
        self.scores.resize(m * self.neurons, 0.0);
    }

    /// Whether scores are the exact gate, which then is known.
    pub fn scores_by_gate(&self) -> bool {
        matches!(self.scorer, Scorer::Gate(_))
    }

    /// What is to be zeroed of all neurons: all that is not set, `[m, ceil(neurons / 64)]`; none where that is zero anyway.
    pub fn masks(&self) -> Option<&[u64]> {
        (!self.zeros_only).then_some(self.masks.as_slice())
    }

    /// What stands for neurons that are left out of a layer; none: nothing.
    pub fn left_out(&self, layer: usize) -> Option<&GateNeurons> {
        self.scorer.gate_neurons(layer)
    }

    /// What an observer sees.
    pub fn active(&self) -> ActiveNeurons<'_> {
        ActiveNeurons { masks: &self.masks, neurons: self.neurons }
    }

    /// Finds the neurons that are active for what a layer was given, by `rule`.
    pub fn find(&mut self, cpu: &Cpu, layer: &At, step: &mut Step, rule: Option<Threshold>, given: &Given) {
        let Given { h, mlp, preferred } = *given;
        let (spec, n, words) = (layer.spec, self.neurons, self.words());
        self.resize(step.rows.len());
        self.zeros_only = false;
        let compute = &cpu.compute;
        let known = self.scorer.gate_neurons(layer.index);
        let magnitudes = self.scorer.compares_magnitudes(spec.activation, layer.index);
        // What is compared with the threshold; none where masks are known without.
        let of = match (&self.scorer, &mut self.scratch) {
            (Scorer::Gate(_), _) => {
                let gated = layer.weights.layers[layer.index].mlp.gate.is_some();
                let values = if gated { &mlp.gate } else { &mlp.up };
                // What comes through unchanged above a value, and not at all below.
                let above = match spec.activation {
                    Activation::Relu | Activation::DoubleRelu => Some(0.0),
                    Activation::FatRelu(threshold) => Some(threshold),
                    _ => None,
                };
                match (rule, above.filter(|_| known.is_none())) {
                    // relu(g) > t is g > t: no need to activate.
                    (Some(Threshold::Fixed(t)), Some(above)) if t >= 0.0 => {
                        self.zeros_only = t <= above && gated;
                        let t = t.max(above);
                        for (values, mask) in values.chunks_exact(n).zip(self.masks.chunks_exact_mut(words)) {
                            compute.mask_above(values, t, false, mask);
                        }
                        None
                    }
                    _ => {
                        self.scores.copy_from_slice(values);
                        compute.activate(spec.activation, &mut self.scores);
                        if let Some(known) = known {
                            let rows = self.scores.chunks_exact_mut(n);
                            rows.for_each(|row| row.iter_mut().zip(&known.weights).for_each(|(s, w)| *s *= w));
                        }
                        Some(Of::Magnitudes)
                    }
                }
            }
            (Scorer::LowRank(predictors), Scratch::LowRank(low)) => {
                let predictor = &predictors[layer.index];
                cpu.predict(predictor, h, low, &mut self.scores);
                if magnitudes {
                    compute.activate(spec.activation, &mut self.scores);
                }
                step.meter.lap(Component::Scores);
                Some(if magnitudes { Of::Magnitudes } else { Of::Scores })
            }
            (Scorer::Signs(signs), Scratch::Signs(packed)) => {
                cpu.count_signs(&signs[layer.index], h, packed, &mut self.scores);
                step.meter.lap(Component::Scores);
                Some(Of::Scores)
            }
            (Scorer::Masks(cycle), _) => {
                let MaskCycle { masks, length } = &**cycle;
                for (r, mask) in self.masks.chunks_exact_mut(words).enumerate() {
                    let at = (step.before + r) % length * words;
                    mask.copy_from_slice(&masks[layer.index][at..at + words]);
                }
                None
            }
            (Scorer::LowRank(_) | Scorer::Signs(_), _) => unreachable!("made with its scratch"),
        };
        if let (Some(of), Some(rule)) = (of, rule) {
            let scores = self.scores.chunks_exact_mut(n).zip(self.masks.chunks_exact_mut(words));
            for ((scores, bits), row) in scores.zip(step.rows) {
                // As of inputs: every later token attends to the first, whose activations are like those of no other.
                let rule = if known.is_some() && row.position == 0 { EVERYTHING } else { rule };
                // More rows stream past the pool.
                if let Some(preferred) = preferred.filter(|_| of == Of::Magnitudes && step.rows.len() <= GATHER_ROWS) {
                    preferred.lower_others(scores);
                }
                mask(compute, rule, of, scores, &mut self.spare, bits);
            }
        }
        union_masks(&self.masks, words, &mut self.union);
        compute.mask_to_ids(&self.union, &mut self.ids);
        let per_row = self.masks.chunks_exact(words).map(|mask| count_ones(mask) as u64);
        step.meter.active(layer.index, per_row, n as u64);
        step.meter.read(self.scorer.bytes(layer.index));
        step.meter.lap(Component::Threshold);
    }
}

impl GateNeurons {
    /// Of an MLP whose neurons have these weights and, left out, these values.
    pub fn new(cpu: &Cpu, mlp: &MlpWeights, [weights, left_out]: [Vec<f32>; 2]) -> Self {
        let mut rest = vec![0.0; mlp.down.outputs()];
        cpu.linear(&left_out, 1, [(mlp.down.view(), rest.as_mut_slice())]);
        GateNeurons { weights, left_out, rest }
    }
}

impl Cpu {
    /// `scores = (h·Aᵀ)·Bᵀ + bias`, `[m, intermediate]`: the predicted gate pre-activations; `low` is overwritten.
    pub fn predict(&self, predictor: &Predictor, h: &[f32], low: &mut Vec<f32>, scores: &mut [f32]) {
        let m = h.len() / predictor.a.cols();
        low.resize(m * predictor.rank(), 0.0);
        let part = LinearPart { weights: predictor.a.matrix().into(), bias: None, out: low };
        self.compute.linear(h, m, &mut [part]);
        let bias = Some(predictor.bias.as_slice());
        self.compute.linear(low, m, &mut [LinearPart { weights: predictor.b.matrix().into(), bias, out: scores }]);
    }

    /// `scores`, `[m, intermediate]`: the share of positive products less that of negative ones, in −1..=1; `packed` is
    /// overwritten with the sign bits of `h`.
    pub fn count_signs(&self, signs: &SignBits, h: &[f32], packed: &mut Vec<u64>, scores: &mut [f32]) {
        let SignBits { bits, hidden } = signs;
        packed.resize(h.len() / hidden * hidden.div_ceil(64), 0);
        self.compute.pack_signs(h, *hidden, packed);
        self.compute.sign_agreement(packed, bits, *hidden, scores);
    }
}
