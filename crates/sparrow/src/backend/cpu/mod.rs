//! The operations of the forward pass on this machine's cores, composed of the kernels of `sparrow-kernels`.

mod attention;
mod buffers;
mod inputs;
mod kv;
mod linear;
mod machine;
mod mlp;
mod neurons;
mod pooled;
mod rows;
mod select;
mod threshold;
mod workspace;

use std::borrow::Cow;
use std::sync::Arc;

use sparrow_kernels::DType;

pub use machine::Cpu;
pub use mlp::DENSE_FROM;
pub use threshold::{Of, mask};

use super::{Ahead, Backend, KvOptions, Setup, Step, Threshold};
use crate::error::{Error, Result};
use crate::spec::ModelSpec;
use crate::weights::Weights;
use kv::KvCache;
use machine::At;
use select::Selection;
use workspace::Workspace;

impl Backend for Cpu {
    type Workspace = Workspace;
    /// The weights where they are: mapped, or in memory.
    type Weights = Arc<Weights>;
    type Kv = KvCache;
    type Selection = Selection;

    fn check(&self) -> Result<()> {
        if self.compute.is_forked() {
            return Err(Error::Forked);
        }
        Ok(())
    }

    fn place(&self, _: &ModelSpec, weights: &Arc<Weights>) -> Result<Arc<Weights>> {
        Ok(weights.clone())
    }

    fn workspace(&self, setup: &Setup, weights: &Arc<Weights>) -> Result<Workspace> {
        Workspace::new(setup, weights)
    }

    fn selection(&self, setup: &Setup) -> Option<Selection> {
        setup.scorer.map(|scorer| Selection::new(setup, scorer.clone()))
    }

    fn kv(&self, spec: &ModelSpec, dtype: DType, options: &KvOptions, capacity: usize) -> Result<KvCache> {
        KvCache::new(spec, dtype, options, capacity)
    }

    fn grow_kv(&self, kv: &mut KvCache, capacity: usize) -> Result<()> {
        kv.grow(capacity)
    }

    fn truncate_kv(&self, kv: &mut KvCache, len: usize) {
        kv.truncate(&self.compute, len);
    }

    fn copy_kv(&self, from: &KvCache, to: &mut KvCache, len: usize) {
        to.copy_prefix(&self.compute, from, len);
    }

    fn prune_kv(&self, kv: &mut KvCache) -> bool {
        kv.prune(&self.compute)
    }

    fn kv_bytes(&self, kv: &KvCache) -> usize {
        kv.bytes()
    }

    fn begin(&self, spec: &ModelSpec, step: &Step, w: &mut Workspace) {
        rows::begin(spec, step.rows, w);
    }

    fn embed(&self, spec: &ModelSpec, weights: &Arc<Weights>, step: &mut Step, w: &mut Workspace) {
        rows::embed(self, spec, weights, step, &mut w.stream);
    }

    fn attention_inputs(
        &self,
        layer: &At,
        step: &mut Step,
        kvs: &mut [KvCache],
        ahead: Option<Ahead<Selection>>,
        w: &mut Workspace,
    ) {
        attention::inputs(self, layer, step, kvs, ahead, w);
    }

    fn attend(&self, layer: &At, step: &mut Step, kvs: &[KvCache], w: &mut Workspace) {
        attention::attend(self, layer, step, kvs, &mut w.attention);
    }

    fn attention_output(&self, layer: &At, step: &mut Step, w: &mut Workspace) {
        attention::output(self, layer, step, w);
    }

    fn select(
        &self,
        layer: &At,
        step: &mut Step,
        rule: Option<Threshold>,
        w: &mut Workspace,
        selection: &mut Selection,
    ) {
        mlp::select(self, layer, step, rule, w, selection);
    }

    fn mlp(&self, layer: &At, step: &mut Step, selection: Option<&Selection>, w: &mut Workspace) -> Result<()> {
        mlp::mlp(self, layer, step, selection, w)
    }

    fn head(&self, spec: &ModelSpec, weights: &Arc<Weights>, rows: &[usize], w: &mut Workspace, logits: &mut [f32]) {
        rows::head(self, spec, weights, rows, &mut w.stream, logits);
    }

    fn residual<'a>(&self, w: &'a Workspace) -> Cow<'a, [f32]> {
        Cow::Borrowed(&w.stream.x)
    }

    fn set_residual(&self, w: &mut Workspace, x: &[f32]) {
        w.stream.x.copy_from_slice(x);
    }

    fn block_bytes(&self, weights: &Arc<Weights>, layer: usize) -> [u64; 2] {
        let layer = &weights.layers[layer];
        [layer.attention_bytes(), layer.mlp.bytes()]
    }

    fn parallel(&self, tasks: usize, f: &(dyn Fn(usize) + Sync)) {
        self.compute.pool().run(tasks, f);
    }
}
