//! Sessions and engines at work.

mod arrivals;
mod cancelled;
mod counts;
mod engine;
mod finite;
mod kept;
mod long_rope;
mod refusals;
mod sequences;
mod steps;

use std::sync::Arc;

use sparrow::internals::spec::ModelSpec;
use sparrow::{DType, KvOptions, KvSparsity, Model};
use sparrow_testing::*;

/// Between two ways through the same f32 kernels.
const SAME: f64 = 2e-5;

/// A small model with room for `context` tokens.
fn model(context: usize) -> Arc<Model> {
    Arc::new(random_model(&ModelSpec { max_position_embeddings: context, ..odd_spec() }, DType::F32, 12))
}

/// Caches that round nothing: one that keeps all, and one that prunes what is older than a few tokens.
fn caches() -> [KvOptions; 2] {
    let dense = KvOptions { dtype: Some(DType::F32), ..KvOptions::default() };
    let sparsity = Some(KvSparsity { keys: 0.3, values: 0.5 });
    [dense, KvOptions { sparsity, dense_tail: 8, sinks: 2, ..dense }]
}
