//! What the operations of a step share.

use super::meter::Meter;
use super::observer::Observer;
use super::projection::InputSelection;
use crate::spec::ModelSpec;

/// One token of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    /// Id, below the vocabulary size.
    pub token: u32,
    /// Index of the sequence's cache.
    pub sequence: usize,
    /// Position in the sequence, from 0.
    pub position: usize,
    /// Tokens the sequence has once all that was asked for is done: what dynamic RoPE scales by.
    pub sequence_len: usize,
}

/// The tokens that go through the layers together, and who watches.
pub struct Step<'a> {
    /// The tokens, `m` of them; those of one prompt follow each other.
    pub rows: &'a [Row],
    /// Tokens that ran before: where a [`MaskCycle`](super::MaskCycle) is.
    pub before: usize,
    /// Sees activations.
    pub observer: &'a mut dyn Observer,
    /// Counts and times.
    pub meter: &'a mut Meter,
}

/// One decoder layer of a model.
pub struct Layer<'a, W> {
    /// The architecture.
    pub spec: &'a ModelSpec,
    /// The placed weights of all layers.
    pub weights: &'a W,
    /// Which layer.
    pub index: usize,
    /// Inputs of its projections that are left out.
    pub inputs: Option<InputSelection<'a>>,
}
