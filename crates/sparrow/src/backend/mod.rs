//! Who does the operations of a layer, and where: the seam between what a model computes and how a machine does it.
//!
//! A layer is five operations, each as coarse as what a GPU fuses into one kernel. What they hand each other (activations, keys and
//! values, the neurons selected) is a backend's own: between them nothing comes back to the caller, unless an [`Observer`] asks.

mod clock;
mod cpu;
mod kv_options;
mod meter;
mod observer;
mod projection;
mod scorer;
mod step;
mod threshold;

use std::borrow::Cow;
use std::sync::Arc;

use sparrow_kernels::DType;

pub use clock::{Component, Timing};
pub use cpu::{Cpu, DENSE_FROM, Of, mask};
pub use kv_options::{KvOptions, KvSparsity};
pub use meter::{Meter, Stats, fraction};
pub use observer::{ActiveNeurons, Observer, Point};
pub use projection::{InputNorms, InputRules, InputSelection, Projection};
pub use scorer::{GateNeurons, MaskCycle, Predictor, Scorer, SignBits, is_relu_family};
pub use step::{Layer, Row, Step};
pub use threshold::Threshold;

use crate::error::Result;
use crate::residency::Placement;
use crate::spec::ModelSpec;
use crate::weights::Weights;

/// What a session needs beside its sequences.
#[derive(Debug, Clone)]
pub struct Setup<'a> {
    /// The architecture.
    pub spec: &'a ModelSpec,
    /// Where weights are while the model runs.
    pub placement: Placement,
    /// What scores neurons, if neurons are selected.
    pub scorer: Option<&'a Scorer>,
    /// Rows of the usual step: room for them is made at once.
    pub rows: usize,
}

/// Neurons that are selected from the attention's input, before attention.
pub struct Ahead<'a, S> {
    /// The rule of this layer; `None` where masks are given.
    pub rule: Option<Threshold>,
    /// Where the selection goes.
    pub selection: &'a mut S,
}

/// Runs the operations of the forward pass.
///
/// Activations have whatever precision a backend gives them; what it shows of them (logits, the residual stream, what observers see)
/// is f32. Work may be queued: what fails late is told by [`mlp`](Self::mlp) or [`check`](Self::check).
pub trait Backend: Send + Sync + Sized + 'static {
    /// The residual stream and what else operations hand each other.
    type Workspace: Send;
    /// A model's weights where this backend computes with them.
    type Weights: Send + Sync;
    /// Keys and values of one sequence.
    type Kv: Send;
    /// The neurons selected in one layer for the rows of a step, and what selecting them takes.
    type Selection: Send;

    /// Whether operations can run at all.
    ///
    /// # Errors
    /// If they cannot any more: threads do not survive a fork.
    fn check(&self) -> Result<()>;

    /// Takes the weights to where they are computed with. [`LayerStream`](crate::run::LayerStream) asks again after a layer was
    /// changed, so what has not changed must not be taken twice.
    ///
    /// # Errors
    /// If there is no room, or the backend lacks something that the model needs; the message names it.
    fn place(&self, spec: &ModelSpec, weights: &Arc<Weights>) -> Result<Self::Weights>;

    /// Working memory of a session.
    ///
    /// # Errors
    /// If there is no room, or weights cannot be had from where they are.
    fn workspace(&self, setup: &Setup, weights: &Self::Weights) -> Result<Self::Workspace>;

    /// Memory to select neurons in, if they are selected.
    fn selection(&self, setup: &Setup) -> Option<Self::Selection>;

    /// An empty cache with room for `capacity` tokens, of type `dtype` and otherwise as `options` say.
    ///
    /// # Errors
    /// If there is no room for it.
    fn kv(&self, spec: &ModelSpec, dtype: DType, options: &KvOptions, capacity: usize) -> Result<Self::Kv>;

    /// Gives a cache room for `capacity` tokens, if it has less.
    ///
    /// # Errors
    /// If there is no room for it; the cache is then what it was.
    fn grow_kv(&self, kv: &mut Self::Kv, capacity: usize) -> Result<()>;

    /// Keeps the first `len` tokens of a cache. Those that a sparse cache has pruned stay pruned.
    fn truncate_kv(&self, kv: &mut Self::Kv, len: usize);

    /// Gives `to` the first `len` tokens of `from` in place of its own.
    fn copy_kv(&self, from: &Self::Kv, to: &mut Self::Kv, len: usize);

    /// Prunes what is older than the dense tail of a sparse cache, at the start of a step: were it the end, going back over tokens
    /// that were only tried would find older ones pruned too early. Whether there was anything to prune.
    fn prune_kv(&self, kv: &mut Self::Kv) -> bool;

    /// Bytes of a cache: what is allocated for its capacity.
    fn kv_bytes(&self, kv: &Self::Kv) -> usize;

    /// Makes working memory ready for the rows of a step, and computes what all layers share of their positions.
    fn begin(&self, spec: &ModelSpec, step: &Step, w: &mut Self::Workspace);

    /// `x`, `[m, hidden]`, from the embeddings of the rows' tokens, and of their positions where these are learned.
    fn embed(&self, spec: &ModelSpec, weights: &Self::Weights, step: &mut Step, w: &mut Self::Workspace);

    /// Norm of `x`, queries, keys and values, their norms, rotation, and storing keys and values. With `ahead`, the neurons of the
    /// layer's MLP are selected from the normed input.
    fn attention_inputs(
        &self,
        layer: &Layer<Self::Weights>,
        step: &mut Step,
        kvs: &mut [Self::Kv],
        ahead: Option<Ahead<Self::Selection>>,
        w: &mut Self::Workspace,
    );

    /// `softmax(q·Kᵀ)·V` of each row over its sequence's cache.
    fn attend(&self, layer: &Layer<Self::Weights>, step: &mut Step, kvs: &[Self::Kv], w: &mut Self::Workspace);

    /// `x += o(attended)`, normed before it is added where the architecture does so.
    fn attention_output(&self, layer: &Layer<Self::Weights>, step: &mut Step, w: &mut Self::Workspace);

    /// Finds the neurons of the MLP that are active by `rule`.
    fn select(
        &self,
        layer: &Layer<Self::Weights>,
        step: &mut Step,
        rule: Option<Threshold>,
        w: &mut Self::Workspace,
        selection: &mut Self::Selection,
    );

    /// `x += mlp(norm(x))`: gate, up, activation and down of all neurons, or of those in `selection`.
    ///
    /// # Errors
    /// If weights cannot be read.
    fn mlp(
        &self,
        layer: &Layer<Self::Weights>,
        step: &mut Step,
        selection: Option<&Self::Selection>,
        w: &mut Self::Workspace,
    ) -> Result<()>;

    /// Logits of the rows numbered `rows` of the step, `[rows, vocab]`: the last norm, the head and its soft cap.
    fn head(
        &self,
        spec: &ModelSpec,
        weights: &Self::Weights,
        rows: &[usize],
        w: &mut Self::Workspace,
        logits: &mut [f32],
    );

    /// The residual stream, `[m, hidden]`.
    fn residual<'a>(&self, w: &'a Self::Workspace) -> Cow<'a, [f32]>;

    /// Replaces the residual stream by `x`, as long.
    fn set_residual(&self, w: &mut Self::Workspace, x: &[f32]);

    /// Bytes of the weights of a layer's attention and of its MLP.
    fn block_bytes(&self, weights: &Self::Weights, layer: usize) -> [u64; 2];

    /// Calls `f` for each of `tasks`, in parallel: for work of the caller's on this machine's cores.
    fn parallel(&self, tasks: usize, f: &(dyn Fn(usize) + Sync));
}
