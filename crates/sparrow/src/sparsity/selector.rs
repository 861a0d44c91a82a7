//! Which parts of a layer a token needs: a [`SelectorSpec`](super::SelectorSpec) made ready for one model.

use sparrow_kernels::{Activation, LinearPart};

use super::forced::Forced;
use super::input::InputThresholds;
use super::predictor::Predictor;
use super::selection::Selection;
use super::sign::SignBits;
use super::skip::SkippedBlocks;
use super::threshold::Threshold;
use crate::backend::Cpu;
use crate::model::spec::ModelSpec;
use crate::model::weights::MlpWeights;
use crate::model::{Clock, Component};

/// Whether an activation is exactly zero over half its inputs, so that skipping zeros loses nothing.
pub fn is_relu_family(activation: Activation) -> bool {
    matches!(activation, Activation::Relu | Activation::ReluSquared)
}

/// A selector ready to run: a [`SelectorSpec`](super::SelectorSpec) with the thresholds and predictors of one model.
#[derive(Debug)]
pub struct Selector {
    kind: Kind,
    /// Of the scores of neurons, one per layer.
    thresholds: Vec<Threshold>,
}

#[derive(Debug)]
enum Kind {
    Dense,
    Gate,
    LowRank { predictors: Vec<Predictor>, look_ahead: bool },
    Sign(Vec<SignBits>),
    Input(InputThresholds),
    Skip(SkippedBlocks),
    Forced(Forced),
}

impl Selector {
    /// Every neuron: the dense model.
    pub fn dense() -> Self {
        Selector { kind: Kind::Dense, thresholds: Vec::new() }
    }

    /// Keeps neurons with `|act(gate)|` above the layer's threshold.
    pub fn gate(thresholds: Vec<Threshold>) -> Self {
        Selector { kind: Kind::Gate, thresholds: resolved(thresholds) }
    }

    /// Keeps neurons whose predicted gate is above the layer's threshold. With `look_ahead` the predictors read the
    /// attention's input of the same layer, so that the selection is known before attention is computed.
    ///
    /// # Panics
    /// If there is not one threshold per predictor.
    pub fn low_rank(predictors: Vec<Predictor>, look_ahead: bool, thresholds: Vec<Threshold>) -> Self {
        assert_eq!(predictors.len(), thresholds.len(), "one threshold per layer");
        Selector { kind: Kind::LowRank { predictors, look_ahead }, thresholds: resolved(thresholds) }
    }

    /// Keeps neurons whose share of positive products less that of negative ones is above the layer's threshold.
    ///
    /// # Panics
    /// If there is not one threshold per layer.
    pub fn sign(signs: Vec<SignBits>, thresholds: Vec<Threshold>) -> Self {
        assert_eq!(signs.len(), thresholds.len(), "one threshold per layer");
        Selector { kind: Kind::Sign(signs), thresholds: resolved(thresholds) }
    }

    /// Leaves out inputs of every projection whose magnitude is not above its threshold.
    pub fn input(thresholds: InputThresholds) -> Self {
        let layers = thresholds.0.into_iter().map(|layer| layer.map(Threshold::resolved)).collect();
        Selector { kind: Kind::Input(InputThresholds(layers)), thresholds: Vec::new() }
    }

    /// Leaves out whole blocks.
    pub fn skip(blocks: SkippedBlocks) -> Self {
        Selector { kind: Kind::Skip(blocks), thresholds: Vec::new() }
    }

    /// Random active sets, the same for every run.
    pub fn forced(spec: &ModelSpec, active: f32, overlap: f32) -> Self {
        Selector { kind: Kind::Forced(Forced::new(spec, active, overlap)), thresholds: Vec::new() }
    }

    /// Whether this is the dense selector.
    pub fn is_dense(&self) -> bool {
        matches!(self.kind, Kind::Dense)
    }

    /// Whether it selects neurons of the MLP, which are gathered from neuron-major weights.
    pub fn selects_neurons(&self) -> bool {
        matches!(self.kind, Kind::Gate | Kind::LowRank { .. } | Kind::Sign(_) | Kind::Forced(_))
    }

    /// The thresholds on inputs of projections, for a selector that leaves out inputs.
    pub(crate) fn inputs(&self) -> Option<&InputThresholds> {
        match &self.kind {
            Kind::Input(thresholds) => Some(thresholds),
            _ => None,
        }
    }

    /// The blocks left out, for a selector that leaves out blocks.
    pub(crate) fn skipped(&self) -> Option<&SkippedBlocks> {
        match &self.kind {
            Kind::Skip(blocks) => Some(blocks),
            _ => None,
        }
    }

    /// Whether neurons are selected from the attention's input.
    pub(crate) fn looks_ahead(&self) -> bool {
        matches!(self.kind, Kind::LowRank { look_ahead: true, .. })
    }

    /// Whether selecting leaves the exact gate values behind, so that they need not be computed again.
    pub(crate) fn computes_gate(&self) -> bool {
        matches!(self.kind, Kind::Gate)
    }

    /// Weight bytes that selecting neurons itself reads in `layer`.
    pub(crate) fn bytes(&self, layer: usize, w: &MlpWeights) -> u64 {
        match &self.kind {
            Kind::Gate => w.gate_row_bytes() * w.up.weight.rows() as u64,
            Kind::LowRank { predictors, .. } => predictors[layer].bytes(),
            Kind::Sign(signs) => signs[layer].bytes(),
            Kind::Dense | Kind::Input(_) | Kind::Skip(_) | Kind::Forced(_) => 0,
        }
    }

    /// Finds the active neurons of `h` (`[m, hidden]`: the MLP's input, or the attention's if it looks ahead). `deciding`,
    /// `[m, intermediate]`, holds the gate's values (an ungated MLP's up projection) if they were `computed` already;
    /// otherwise a selector that needs them computes them into it.
    ///
    /// # Panics
    /// If it does not select neurons.
    #[allow(clippy::too_many_arguments)]
    pub(crate) fn select(
        &self,
        spec: &ModelSpec,
        cpu: &Cpu,
        layer: usize,
        w: &MlpWeights,
        h: &[f32],
        m: usize,
        computed: bool,
        deciding: &mut [f32],
        s: &mut Selection,
        clock: &mut Clock,
    ) {
        let n = spec.intermediate_size;
        s.resize(m, n);
        s.zeros_only = false;
        // Above zero ReLU is the identity and below it an estimate still ranks neurons; other activations are ranked by
        // the size of what they let through.
        let relu = is_relu_family(spec.activation);
        match &self.kind {
            Kind::Dense | Kind::Input(_) | Kind::Skip(_) => panic!("select: no neurons are selected"),
            Kind::Gate => {
                if !computed {
                    cpu.linear(h, m, [(w.gate.as_ref().unwrap_or(&w.up), &mut *deciding)]);
                    clock.lap(Component::Scores);
                }
                match self.thresholds[layer] {
                    // relu(g) > t is g > t: no need to activate.
                    Threshold::Fixed(t) if t >= 0.0 && spec.activation == Activation::Relu => {
                        s.zeros_only = t == 0.0 && w.gate.is_some();
                        for (values, mask) in deciding.chunks_exact(n).zip(s.masks.chunks_exact_mut(n.div_ceil(64))) {
                            cpu.compute.mask_above(values, t, false, mask);
                        }
                    }
                    threshold => {
                        s.scores.copy_from_slice(deciding);
                        cpu.compute.activate(spec.activation, &mut s.scores);
                        s.threshold(cpu, threshold, true, n);
                    }
                }
            }
            Kind::LowRank { predictors, .. } => {
                let predictor = &predictors[layer];
                predictor.scores(cpu, h, m, &mut s.low_rank, &mut s.scores);
                let magnitude = !relu && !predictor.logits;
                if magnitude {
                    cpu.compute.activate(spec.activation, &mut s.scores);
                }
                clock.lap(Component::Scores);
                s.threshold(cpu, self.thresholds[layer], magnitude, n);
            }
            Kind::Sign(signs) => {
                signs[layer].scores(&cpu.compute, h, &mut s.signs, &mut s.scores);
                clock.lap(Component::Scores);
                s.threshold(cpu, self.thresholds[layer], false, n);
            }
            Kind::Forced(forced) => forced.masks(layer, m, n, &mut s.masks),
        }
        s.unite(cpu, n);
        clock.lap(Component::Threshold);
    }

    /// A new step begins: only forced selection depends on it.
    pub(crate) fn advance(&mut self, rows: usize) {
        if let Kind::Forced(forced) = &mut self.kind {
            forced.step += rows;
        }
    }
}

fn resolved(thresholds: Vec<Threshold>) -> Vec<Threshold> {
    thresholds.into_iter().map(Threshold::resolved).collect()
}

impl Predictor {
    /// `scores = (h·Aᵀ)·Bᵀ`, `[m, intermediate]`: the predicted gate pre-activations.
    pub(crate) fn scores(&self, cpu: &Cpu, h: &[f32], m: usize, low: &mut Vec<f32>, scores: &mut [f32]) {
        low.resize(m * self.rank(), 0.0);
        cpu.compute.linear(h, m, &mut [LinearPart { weights: self.a.matrix().into(), bias: None, out: low }]);
        let bias = Some(self.bias.as_slice());
        cpu.compute.linear(low, m, &mut [LinearPart { weights: self.b.matrix().into(), bias, out: scores }]);
    }
}
