//! Sequences being processed: caches, working memory, and the calls that advance them.

mod advance;
mod finite;
mod sequences;

pub use advance::check_ids;

use std::sync::Arc;

use super::cancel::Cancel;
use super::sequence::{Sequence, SequenceStats};
use crate::backend::{Backend, Component, Cpu, KvOptions, KvSparsity, Meter, Row, Setup, Stats, Timing};
use crate::error::{Error, Result};
use crate::model::Model;
use crate::select::Selector;
use crate::tensor::room;

/// Tokens of one prompt that go through the layers together. Large enough that every weight is reused many times,
/// small enough that the working memory stays modest.
pub const PREFILL_ROWS: usize = 512;

/// Rows whose logits are computed together where all are wanted.
pub const LOGIT_ROWS: usize = 32;

/// Size of a [`Session`].
#[derive(Debug, Clone, Copy)]
pub struct SessionOptions {
    /// Sequences there are from the beginning.
    pub sequences: usize,
    /// Tokens each of them has room for, prompt included.
    pub capacity: usize,
    /// How keys and values are kept.
    pub kv: KvOptions,
}

/// A model at work on any number of sequences.
pub struct Session<B: Backend = Cpu> {
    model: Arc<Model>,
    backend: Arc<B>,
    weights: B::Weights,
    selector: Selector,
    kv: KvOptions,
    /// By number; none where a sequence was removed.
    sequences: Vec<Option<Sequence>>,
    kvs: Vec<B::Kv>,
    workspace: B::Workspace,
    selection: Option<B::Selection>,
    meter: Meter,
    cancel: Cancel,
    /// Tokens that ran so far.
    before: usize,
    rows: Vec<Row>,
    /// Numbers of the rows whose logits are wanted.
    wanted: Vec<usize>,
    logits: Vec<f32>,
}

impl<B: Backend> Session<B> {
    /// Empty sequences of `model`, run with `selector` (from [`Load`](crate::Load)).
    ///
    /// # Errors
    /// If the capacity is above the model's context length or 0, a fraction of [`KvSparsity`] is not in 0..=1, or a weight cache
    /// cannot be set up.
    ///
    /// # Panics
    /// If `selector` is sparse and the weights are not neuron-major: [`Load`](crate::Load) sees to it.
    pub fn new(model: Arc<Model>, backend: Arc<B>, selector: Selector, options: SessionOptions) -> Result<Self> {
        let SessionOptions { sequences, capacity, kv } = options;
        let spec = &model.spec;
        let fits = |s: &KvSparsity| [s.keys, s.values].iter().all(|f| (0.0..=1.0).contains(f));
        if let Some(sparsity) = kv.sparsity.filter(|s| !fits(s)) {
            return Err(Error::option("kv-sparsity", format!("fractions must be from 0 to 1, found {sparsity}")));
        }
        let scorer = selector.neurons().map(|neurons| &neurons.scorer);
        let setup = Setup { spec, placement: model.placement, scorer, rows: sequences.max(1) };
        let weights = backend.place(spec, &model.weights)?;
        let rows = sequences.max(PREFILL_ROWS.min(capacity));
        let mut session = Session {
            workspace: backend.workspace(&setup, &weights)?,
            selection: backend.selection(&setup),
            meter: Meter::new(spec.num_layers, rows),
            logits: Vec::with_capacity(sequences * spec.vocab_size),
            rows: Vec::with_capacity(rows),
            wanted: Vec::with_capacity(rows),
            sequences: Vec::new(),
            kvs: Vec::new(),
            cancel: Cancel::default(),
            before: 0,
            kv,
            weights,
            selector,
            backend,
            model,
        };
        for number in 0..sequences {
            session.add_sequence(capacity)?;
            if number == 0 {
                // Memory is taken as tokens come, so that one cache after the other would find room.
                let needed = (session.kv_bytes() as u64).saturating_mul(sequences as u64);
                room::ask(
                    || format!("{sequences} caches"),
                    needed,
                    "let fewer sequences run together, or shorter ones",
                )?;
            }
        }
        Ok(session)
    }

    /// The model.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// What it runs on.
    pub fn backend(&self) -> &Arc<B> {
        &self.backend
    }

    /// How keys and values are kept.
    pub fn kv(&self) -> &KvOptions {
        &self.kv
    }

    /// Counts of the steps since the last [`reset_stats`](Self::reset_stats).
    pub fn stats(&self) -> &Stats {
        &self.meter.stats
    }

    /// Starts counting anew.
    pub fn reset_stats(&mut self) {
        self.meter.stats.reset();
    }

    /// What a sequence took since it was added.
    ///
    /// # Errors
    /// If there is no such sequence.
    pub fn sequence_stats(&self, sequence: usize) -> Result<&SequenceStats> {
        Ok(&self.sequence(sequence)?.stats)
    }

    /// Starts timing every component of every step from here on.
    pub fn start_profile(&mut self) {
        self.meter.clock.start();
    }

    /// Seconds per call of [`prefill`](Self::prefill) or [`decode`](Self::decode) by component, since
    /// [`start_profile`](Self::start_profile).
    pub fn profile(&self) -> Vec<(Component, Timing)> {
        self.meter.clock.report()
    }

    /// What stops a step between two layers.
    pub fn cancel(&self) -> &Cancel {
        &self.cancel
    }

    /// Stops with `cancel` from here on.
    pub fn set_cancel(&mut self, cancel: Cancel) {
        self.cancel = cancel;
    }

    fn sequence(&self, number: usize) -> Result<&Sequence> {
        self.sequences.get(number).and_then(Option::as_ref).ok_or_else(|| no_sequence(number))
    }

    fn sequence_mut(&mut self, number: usize) -> Result<&mut Sequence> {
        self.sequences.get_mut(number).and_then(Option::as_mut).ok_or_else(|| no_sequence(number))
    }
}

fn no_sequence(number: usize) -> Error {
    Error::option("sequence", format!("there is no sequence {number}"))
}

impl<B: Backend> std::fmt::Debug for Session<B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Session({} sequences of {})", self.sequences(), self.model.spec.architecture)
    }
}
