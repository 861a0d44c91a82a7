//! A selector ready for one model.

use super::blocks::SkippedBlocks;
use std::sync::Arc;

use crate::backend::{InputNorms, InputRules, InputSelection, Scorer, Threshold};

/// A selector ready to run: a [`SelectorSpec`](super::SelectorSpec) with the thresholds and predictors of one model.
#[derive(Debug, Clone)]
pub enum Selector {
    /// Leaves out nothing.
    Dense,
    /// Leaves out neurons of MLPs.
    Neurons(Neurons),
    /// Leaves out inputs of projections.
    Inputs(InputThresholds),
    /// Leaves out attention or MLP of whole layers.
    Blocks(SkippedBlocks),
}

/// Thresholds on the magnitude of the inputs of each projection of each layer.
#[derive(Debug, Clone, PartialEq)]
pub struct InputThresholds {
    /// One for each layer.
    pub rules: Vec<InputRules>,
    /// What magnitudes are multiplied with, for each layer; none: they are compared as they are.
    pub norms: Option<Arc<[InputNorms]>>,
}

/// Which neurons of an MLP a token needs.
#[derive(Debug, Clone)]
pub struct Neurons {
    /// What scores them.
    pub scorer: Scorer,
    /// What of the scores is kept, one per layer; empty where masks are given.
    pub rules: Vec<Threshold>,
    /// They are selected from the attention's input, so that the selection is known before attention is computed.
    pub look_ahead: bool,
}

impl Neurons {
    /// Neurons that `scorer` scores above a threshold for each layer.
    pub fn above(scorer: Scorer, thresholds: Vec<Threshold>, look_ahead: bool) -> Self {
        Neurons { scorer, rules: thresholds.into_iter().map(Threshold::resolved).collect(), look_ahead }
    }
}

impl Selector {
    /// Every neuron: the dense model.
    pub fn dense() -> Self {
        Selector::Dense
    }

    /// Whether this is the dense selector.
    pub fn is_dense(&self) -> bool {
        matches!(self, Selector::Dense)
    }

    /// Which neurons, for a selector of neurons.
    pub fn neurons(&self) -> Option<&Neurons> {
        match self {
            Selector::Neurons(neurons) => Some(neurons),
            _ => None,
        }
    }

    /// Whether it selects neurons of the MLP, which are gathered from neuron-major weights.
    pub fn selects_neurons(&self) -> bool {
        self.neurons().is_some()
    }

    /// Whether it leaves out inputs of projections, which are read from input-major weights.
    pub fn selects_inputs(&self) -> bool {
        matches!(self, Selector::Inputs(_))
    }

    /// Whether it computes every gate, so that gates are wanted in memory.
    pub fn computes_gate(&self) -> bool {
        matches!(self, Selector::Neurons(Neurons { scorer: Scorer::Gate(_), .. }))
    }

    /// Which inputs of a layer's projections are left out.
    pub fn inputs(&self, layer: usize) -> Option<InputSelection<'_>> {
        let Selector::Inputs(InputThresholds { rules, norms }) = self else { return None };
        Some(InputSelection { rules: &rules[layer], norms: norms.as_ref().map(|norms| &norms[layer]) })
    }

    /// Whether a layer's attention and its MLP are computed.
    pub fn blocks(&self, layer: usize) -> [bool; 2] {
        match self {
            Selector::Blocks(left_out) => [!left_out.attention.contains(&layer), !left_out.mlp.contains(&layer)],
            _ => [true; 2],
        }
    }
}
