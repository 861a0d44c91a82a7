//! What every selector says about itself.

use super::blocks::SkippedBlocks;
use super::selector::Selector;
use super::{Method, SelectorSpec};
use std::sync::Arc;

use crate::backend::{Cpu, InputNorms, Predictor, Threshold};
use crate::error::{Error, Result};
use crate::residency::Placement;
use crate::spec::ModelSpec;
use crate::weights::Weights;

/// A selector: how a user names it, what it needs of a model, and what runs it.
pub trait Kind: Sync {
    /// Its name, in lower case.
    fn name(&self) -> &'static str;

    /// The name with what may follow it, as in `gate[:RULE]`.
    fn usage(&self) -> &'static str;

    /// What it leaves out and how it decides, in a few words.
    fn help(&self) -> &'static str;

    /// Whether help texts leave it out: it is for measuring only.
    fn is_hidden(&self) -> bool {
        false
    }

    /// Checks what comes after the colon, and writes it in one way.
    ///
    /// # Errors
    /// Says what is wrong and what may be there.
    fn parse(&self, parameters: Option<&str>) -> std::result::Result<Option<String>, String>;

    /// Makes it ready for a model.
    ///
    /// # Errors
    /// If it needs calibration that the model does not carry, or an option is out of range.
    fn ready(&self, spec: &SelectorSpec, model: &Loaded) -> Result<Selector>;

    /// What calibration finds for it.
    fn calibrates(&self) -> Calibrates {
        Calibrates::Nothing
    }

    /// What it is calibrated for where nothing was asked for; `relu`: skipping zeros of the model's activation loses nothing.
    fn default_goal(&self, _relu: bool) -> Goal {
        Goal::Active(0.6)
    }

    /// What is written of its calibration.
    ///
    /// # Panics
    /// If something else was found than [`calibrates`](Self::calibrates) asks for.
    fn method(&self, found: Found) -> Method {
        panic!("{} is not calibrated, but {found:?} was found", self.name())
    }
}

/// What calibration finds for a selector.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Calibrates {
    /// It needs none.
    Nothing,
    /// Thresholds of neurons, by these scores.
    Neurons(Scores),
    /// Thresholds of inputs of projections.
    Inputs,
    /// Blocks to leave out.
    Blocks,
}

/// What neurons are scored by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scores {
    /// The exact gate.
    Gate,
    /// A low-rank prediction of it, which calibration makes.
    LowRank,
    /// Sign bits.
    Signs,
}

impl Scores {
    /// Whether they only estimate which neurons are active, so that a part of these can be wanted.
    pub fn predict(self) -> bool {
        self != Scores::Gate
    }
}

/// What thresholds are calibrated for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Goal {
    /// Find this fraction of the truly active neurons.
    Recall(f64),
    /// Keep this fraction: of the neurons, or of the layers' weights for selectors of inputs or blocks.
    Active(f64),
    /// Keep as little as lets perplexity rise by at most this fraction: 0.01 is one per cent.
    Perplexity(f64),
    /// Keep as little as leaves the mean KL divergence from dense at most this, in nats.
    Divergence(f64),
}

/// What calibration found.
#[derive(Debug, Clone)]
pub enum Found {
    /// For selectors of neurons.
    Neurons {
        /// One per layer.
        thresholds: Vec<Threshold>,
        /// Of predictors.
        rank: usize,
        /// Predictors read the attention's input instead of the MLP's.
        look_ahead: bool,
        /// Passes of training over the text that were kept.
        epochs: usize,
        /// Weights and means of neurons are beside it.
        weighted: bool,
    },
    /// Magnitudes, per layer and projection.
    Inputs(Vec<[f32; 7]>),
    /// What to leave out.
    Blocks(SkippedBlocks),
}

/// A calibrated selector in `sparrow.json`.
pub trait Record {
    /// Whose it is.
    fn kind(&self) -> &'static dyn Kind;

    /// Thresholds of neurons, one per layer; none for selectors of inputs or blocks.
    fn neuron_thresholds(&self) -> Option<&[Threshold]> {
        None
    }

    /// It in a few words.
    fn describe(&self) -> String {
        self.kind().name().to_owned()
    }

    /// Refuses what does not fit a model.
    ///
    /// # Errors
    /// Names the field.
    fn check(&self, spec: &ModelSpec) -> std::result::Result<(), Unfit>;

    /// Whether norms of the weights' columns are beside it.
    fn has_norms(&self) -> bool {
        false
    }

    /// Whether weights and means of neurons are beside it.
    fn has_gate_neurons(&self) -> bool {
        false
    }

    /// Rank of the predictors beside it, and whether they are trained; none if there are none.
    fn predictors(&self) -> Option<(usize, bool)> {
        None
    }
}

/// Why a record does not fit a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unfit {
    /// The field of `sparrow.json`.
    pub field: &'static str,
    /// Expected and found.
    pub message: String,
}

impl Unfit {
    /// Refuses a list that has not an entry per layer.
    ///
    /// # Errors
    /// Names the field.
    pub fn unless_per_layer(field: &'static str, len: usize, spec: &ModelSpec) -> std::result::Result<(), Unfit> {
        match len == spec.num_layers {
            true => Ok(()),
            false => {
                Err(Unfit { field, message: format!("has {len} entries for a model of {} layers", spec.num_layers) })
            }
        }
    }

    /// Refuses thresholds that are not one per layer, each as the command line accepts it.
    ///
    /// # Errors
    /// Names the field.
    pub fn unless_thresholds(thresholds: &[Threshold], spec: &ModelSpec) -> std::result::Result<(), Unfit> {
        let field = "method.thresholds";
        Self::unless_per_layer(field, thresholds.len(), spec)?;
        for (layer, threshold) in thresholds.iter().enumerate() {
            let checked = threshold.to_string().parse::<Threshold>();
            checked.map_err(|e| Unfit { field, message: format!("entry {layer}: {e}") })?;
        }
        Ok(())
    }
}

/// The model that a selector is made ready for.
pub struct Loaded<'a> {
    /// The architecture.
    pub spec: &'a ModelSpec,
    /// Its weights.
    pub weights: &'a Weights,
    /// What calibration found for it.
    pub calibrated: Option<&'a Method>,
    /// One per layer, where `sparrow.json` has them.
    pub predictors: &'a [Predictor],
    /// Norms of the weights' columns, of its sidecar.
    pub norms: Option<&'a Arc<[InputNorms]>>,
    /// Weights of neurons and what stands for them where they are left out, by layer, of its sidecar.
    pub gate_neurons: Option<&'a [[Vec<f32>; 2]]>,
    /// Where weights are while it runs.
    pub placement: Placement,
    /// What it runs on.
    pub cpu: &'a Cpu,
}

impl Loaded<'_> {
    /// Thresholds of neurons for `spec`: its rule in every layer, or those `stored` in `sparrow.json`, or zero where the activation
    /// is exactly zero below it, so that nothing is lost.
    ///
    /// # Errors
    /// If there are none; `example` is a rule that could be given.
    pub fn thresholds(
        &self,
        spec: &SelectorSpec,
        stored: Option<&[Threshold]>,
        example: &str,
    ) -> Result<Vec<Threshold>> {
        let layers = self.spec.num_layers;
        let zero = crate::backend::is_relu_family(self.spec.activation).then(|| vec![Threshold::Fixed(0.0); layers]);
        let rule = spec.rule().map(|rule| vec![rule; layers]);
        rule.or(stored.map(<[_]>::to_vec)).or(zero).ok_or_else(|| needs_or_rule(spec, "calibrated thresholds", example))
    }
}

/// The error of a selector that needs something of calibration.
pub(super) fn needs(spec: &SelectorSpec, what: &str) -> Error {
    let name = spec.name();
    let message = format!("{name} needs {what}: run `sparrow sparsify MODEL -o OUT --selector {name}` first");
    Error::option("selector", message)
}

/// The same, where a rule would do.
pub(super) fn needs_or_rule(spec: &SelectorSpec, what: &str, example: &str) -> Error {
    needs(spec, &format!("{what} or a rule ({}:{example})", spec.name()))
}

/// Reads what comes after the colon as a rule.
pub(super) fn rule(parameters: Option<&str>) -> std::result::Result<Option<String>, String> {
    Ok(parameters.map(str::parse::<Threshold>).transpose()?.map(|rule| rule.to_string()))
}

/// Names of a layer's predictor tensors: `a` `[rank, input]`, `b` `[intermediate, rank]`, `bias` `[intermediate]`.
pub fn predictor_tensors(layer: usize) -> [String; 3] {
    ["a", "b", "bias"].map(|part| format!("sparrow.layers.{layer}.predictor.{part}"))
}

/// Names of the tensors with a layer's [`InputNorms`].
pub fn norm_tensors(layer: usize) -> [String; 4] {
    ["attention", "output", "mlp", "down"].map(|site| format!("sparrow.layers.{layer}.input_norms.{site}"))
}

/// Names of the tensors with the weights of a layer's neurons and with what stands for them where they are left out.
pub fn gate_neuron_tensors(layer: usize) -> [String; 2] {
    ["weight", "left_out"].map(|part| format!("sparrow.layers.{layer}.gate_neurons.{part}"))
}
