//! Which neurons of an MLP a token needs.

use std::fmt;
use std::str::FromStr;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use sparrow_kernels::{Activation, LinearPart, count_ones, union_masks};

use super::predictor::Predictor;
use super::threshold::Threshold;
use crate::backend::Cpu;
use crate::model::spec::ModelSpec;
use crate::model::weights::MlpWeights;
use crate::model::{Clock, Component};

/// A selector as a user names it: `dense`, `gate[:RULE]` or `lowrank[:RULE]`, with RULE one of `fixed=T`, `mean-std=K`,
/// `top-k=N`, `quantile=Q`. Without a rule the calibrated thresholds are used.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum SelectorSpec {
    /// Every neuron.
    Dense,
    /// Computes the gate exactly and skips neurons whose activated gate is zero or small (CATS, arXiv 2404.08763).
    Gate(Option<Threshold>),
    /// Predicts the gate by two thin matrices and skips neurons predicted small (Deja Vu, arXiv 2310.17157).
    LowRank(Option<Threshold>),
    /// Random active sets of a given size and step-to-step overlap: for measuring speed only.
    Forced {
        /// Fraction of neurons active.
        active: f32,
        /// Fraction of a step's active neurons that the next step has too.
        overlap: f32,
    },
}

impl fmt::Display for SelectorSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, rule) = match self {
            SelectorSpec::Dense => ("dense", &None),
            SelectorSpec::Gate(rule) => ("gate", rule),
            SelectorSpec::LowRank(rule) => ("lowrank", rule),
            SelectorSpec::Forced { active, overlap } => {
                return write!(f, "forced:active={active},overlap={overlap}");
            }
        };
        match rule {
            None => f.write_str(name),
            Some(rule) => write!(f, "{name}:{rule}"),
        }
    }
}

impl FromStr for SelectorSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(parameters) = text.strip_prefix("forced:") {
            return parse_forced(parameters).ok_or_else(|| format!("selector {text:?}: use forced:active=F,overlap=P"));
        }
        let (name, rule) = match text.split_once(':') {
            Some((name, rule)) => (name, Some(rule.parse::<Threshold>()?)),
            None => (text, None),
        };
        match (name, rule) {
            ("dense", None) => Ok(SelectorSpec::Dense),
            ("dense", Some(_)) => Err("selector dense takes no threshold".into()),
            ("gate", rule) => Ok(SelectorSpec::Gate(rule)),
            ("lowrank", rule) => Ok(SelectorSpec::LowRank(rule)),
            _ => Err(format!("unknown selector {name:?}: use dense, gate[:RULE] or lowrank[:RULE]")),
        }
    }
}

fn parse_forced(parameters: &str) -> Option<SelectorSpec> {
    let (active, overlap) = parameters.split_once(',')?;
    let active = active.strip_prefix("active=")?.parse().ok()?;
    Some(SelectorSpec::Forced { active, overlap: overlap.strip_prefix("overlap=")?.parse().ok()? })
}

/// Whether an activation is exactly zero over half its inputs, so that skipping zeros loses nothing.
pub fn is_relu_family(activation: Activation) -> bool {
    matches!(activation, Activation::Relu | Activation::ReluSquared)
}

/// A selector ready to run: a [`SelectorSpec`] with the thresholds and predictors of one model.
#[derive(Debug)]
pub struct Selector {
    kind: Kind,
    thresholds: Vec<Threshold>,
}

#[derive(Debug)]
enum Kind {
    Dense,
    Gate,
    LowRank(Vec<Predictor>),
    Forced(Forced),
}

/// The active neurons of the rows of one layer and step, and the working memory to find them.
#[derive(Debug, Default)]
pub struct Selection {
    /// One bitmap per row, `[m, ceil(intermediate / 64)]`: bit `i` says that neuron `i` counts for the row.
    pub masks: Vec<u64>,
    /// Ascending ids of the neurons active in any row.
    pub ids: Vec<u32>,
    /// Active neurons summed over rows.
    pub active: u64,
    /// No selection was made: every neuron counts.
    pub all: bool,
    /// Only neurons that are zero anyway were left out.
    zeros_only: bool,
    union: Vec<u64>,
    scores: Vec<f32>,
    low_rank: Vec<f32>,
    spare: Vec<f32>,
}

impl Selector {
    /// Every neuron: the dense model.
    pub fn dense() -> Self {
        Selector { kind: Kind::Dense, thresholds: Vec::new() }
    }

    /// Keeps neurons with `|act(gate)|` above the layer's threshold.
    pub fn gate(thresholds: Vec<Threshold>) -> Self {
        Selector { kind: Kind::Gate, thresholds }
    }

    /// Keeps neurons whose predicted gate is above the layer's threshold.
    ///
    /// # Panics
    /// If there is not one threshold per predictor.
    pub fn low_rank(predictors: Vec<Predictor>, thresholds: Vec<Threshold>) -> Self {
        assert_eq!(predictors.len(), thresholds.len(), "one threshold per layer");
        Selector { kind: Kind::LowRank(predictors), thresholds }
    }

    /// Random active sets, the same for every run.
    pub fn forced(spec: &ModelSpec, active: f32, overlap: f32) -> Self {
        Selector { kind: Kind::Forced(Forced::new(spec, active, overlap)), thresholds: Vec::new() }
    }

    /// Whether this is the dense selector.
    pub fn is_dense(&self) -> bool {
        matches!(self.kind, Kind::Dense)
    }

    /// Whether selecting leaves the exact gate values behind, so that they need not be computed again.
    pub(crate) fn computes_gate(&self) -> bool {
        matches!(self.kind, Kind::Gate)
    }

    /// Weight bytes that selecting itself reads in `layer`.
    pub(crate) fn bytes(&self, layer: usize, w: &MlpWeights) -> u64 {
        match &self.kind {
            Kind::Dense | Kind::Forced(_) => 0,
            Kind::Gate => w.gate_row_bytes() * w.up.weight.rows() as u64,
            Kind::LowRank(predictors) => predictors[layer].bytes(),
        }
    }

    /// Finds the active neurons of `h` (`[m, hidden]`); false if all are. `deciding`,
    /// `[m, intermediate]`, holds the gate's values (an ungated MLP's up projection) if they were `computed` already;
    /// otherwise a selector that needs them computes them into it.
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
    ) -> bool {
        let n = spec.intermediate_size;
        s.all = self.is_dense();
        if s.all {
            return false;
        }
        s.resize(m, n);
        s.zeros_only = false;
        match &self.kind {
            Kind::Dense => unreachable!("returned above"),
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
            Kind::LowRank(predictors) => {
                predictors[layer].scores(cpu, h, m, &mut s.low_rank, &mut s.scores);
                // Above zero ReLU is the identity and below it the prediction still ranks neurons; other activations
                // are ranked by the size of what they let through.
                let magnitude = !is_relu_family(spec.activation);
                if magnitude {
                    cpu.compute.activate(spec.activation, &mut s.scores);
                }
                clock.lap(Component::Scores);
                s.threshold(cpu, self.thresholds[layer], magnitude, n);
            }
            Kind::Forced(forced) => forced.masks(layer, m, n, &mut s.masks),
        }
        s.unite(cpu, n);
        clock.lap(Component::Threshold);
        true
    }

    /// A new step begins: only forced selection depends on it.
    pub(crate) fn advance(&mut self, rows: usize) {
        if let Kind::Forced(forced) = &mut self.kind {
            forced.step += rows;
        }
    }
}

impl Selection {
    pub(crate) fn reserve(&mut self, m: usize, spec: &ModelSpec) {
        self.resize(m, spec.intermediate_size);
        self.ids.reserve(spec.intermediate_size);
        self.spare.reserve(spec.intermediate_size);
        self.low_rank.reserve(m * spec.hidden_size);
    }

    fn resize(&mut self, m: usize, n: usize) {
        self.masks.resize(m * n.div_ceil(64), 0);
        self.union.resize(n.div_ceil(64), 0);
        self.scores.resize(m * n, 0.0);
    }

    fn threshold(&mut self, cpu: &Cpu, rule: Threshold, magnitude: bool, n: usize) {
        let rows = self.scores.chunks_exact_mut(n).zip(self.masks.chunks_exact_mut(n.div_ceil(64)));
        for (scores, mask) in rows {
            rule.mask(&cpu.compute, scores, magnitude, &mut self.spare, mask);
        }
    }

    fn unite(&mut self, cpu: &Cpu, n: usize) {
        union_masks(&self.masks, n.div_ceil(64), &mut self.union);
        cpu.compute.mask_to_ids(&self.union, &mut self.ids);
        self.active = count_ones(&self.masks) as u64;
    }

    /// Zeroes the inactive ones of `neurons`, `[m, n]`.
    pub(crate) fn mask(&self, cpu: &Cpu, neurons: &mut [f32], n: usize) {
        if !self.all && !self.zeros_only {
            cpu.compute.zero_unset(neurons, n, &self.masks);
        }
    }

    /// Whether neuron `i` counts for row `r`, of a layer with `n` neurons.
    pub fn contains(&self, r: usize, i: usize, n: usize) -> bool {
        self.all || self.masks[r * n.div_ceil(64) + i / 64] >> (i % 64) & 1 == 1
    }
}

/// A cycle of precomputed random masks per layer.
#[derive(Debug)]
struct Forced {
    cycle: Vec<Vec<u64>>,
    step: usize,
}

impl Forced {
    const CYCLE: usize = 64;

    fn new(spec: &ModelSpec, active: f32, overlap: f32) -> Self {
        let n = spec.intermediate_size;
        let keep = ((n as f32 * active).round() as usize).min(n);
        let replaced = ((keep as f32 * (1.0 - overlap)).round() as usize).min(n - keep);
        let mut rng = ChaCha8Rng::seed_from_u64(0);
        let cycle = |_| {
            // ids[..keep] is the active set.
            let mut ids: Vec<usize> = (0..n).collect();
            partial_shuffle(&mut ids, 0, keep, &mut rng);
            let mut masks = Vec::with_capacity(Self::CYCLE * n.div_ceil(64));
            for _ in 0..Self::CYCLE {
                let mut mask = vec![0u64; n.div_ceil(64)];
                ids[..keep].iter().for_each(|&i| mask[i / 64] |= 1 << (i % 64));
                masks.extend(mask);
                partial_shuffle(&mut ids[..keep], 0, replaced, &mut rng);
                partial_shuffle(&mut ids, keep, keep + replaced, &mut rng);
                (0..replaced).for_each(|i| ids.swap(i, keep + i));
            }
            masks
        };
        Forced { cycle: (0..spec.num_layers).map(cycle).collect(), step: 0 }
    }

    fn masks(&self, layer: usize, m: usize, n: usize, out: &mut [u64]) {
        let words = n.div_ceil(64);
        for (r, mask) in out.chunks_exact_mut(words).take(m).enumerate() {
            let at = (self.step + r) % Self::CYCLE * words;
            mask.copy_from_slice(&self.cycle[layer][at..at + words]);
        }
    }
}

/// Puts a random choice from `ids[from..]` into `ids[from..to]`.
fn partial_shuffle(ids: &mut [usize], from: usize, to: usize, rng: &mut ChaCha8Rng) {
    for i in from..to {
        let j = i + (rng.next_u64() % (ids.len() - i) as u64) as usize;
        ids.swap(i, j);
    }
}

/// Sees every MLP's input and selection: calibration and quality measurements.
pub trait Observer {
    /// `h` is `[m, hidden]`; `selection` is absent where every neuron counts.
    fn mlp(&mut self, layer: usize, h: &[f32], m: usize, selection: Option<&Selection>);
}

/// Nobody looks.
impl Observer for () {
    fn mlp(&mut self, _: usize, _: &[f32], _: usize, _: Option<&Selection>) {}
}

/// One who may be there.
impl<T: Observer> Observer for Option<T> {
    fn mlp(&mut self, layer: usize, h: &[f32], m: usize, selection: Option<&Selection>) {
        if let Some(observer) = self {
            observer.mlp(layer, h, m, selection);
        }
    }
}

impl Predictor {
    /// `scores = (h·Aᵀ)·Bᵀ`, `[m, intermediate]`: the predicted gate pre-activations.
    pub(crate) fn scores(&self, cpu: &Cpu, h: &[f32], m: usize, low: &mut Vec<f32>, scores: &mut [f32]) {
        low.resize(m * self.rank(), 0.0);
        cpu.compute.linear(h, m, &mut [LinearPart { weights: self.a.matrix(), bias: None, out: low }]);
        let bias = Some(self.bias.as_slice());
        cpu.compute.linear(low, m, &mut [LinearPart { weights: self.b.matrix(), bias, out: scores }]);
    }
}
