//! The one forward pass: prefill and decode, one sequence or many, dense or sparse, every architecture, every backend.

use super::cancel::Cancel;
use crate::backend::{Ahead, Backend, Component, Layer, Point, Step};
use crate::error::Result;
use crate::select::Selector;
use crate::spec::ModelSpec;

/// What a forward pass reads.
pub struct Pass<'a, B: Backend> {
    pub backend: &'a B,
    pub spec: &'a ModelSpec,
    pub weights: &'a B::Weights,
    pub selector: &'a Selector,
}

/// What it writes.
pub struct State<'a, B: Backend> {
    /// By sequence.
    pub kvs: &'a mut [B::Kv],
    pub workspace: &'a mut B::Workspace,
    /// For a selector of neurons.
    pub selection: Option<&'a mut B::Selection>,
}

/// Runs the rows of `step`, `m` of them, through all layers. On return the residual stream holds the final hidden states
/// `[m, hidden]`, before the last norm, and the caches hold the rows' keys and values beyond those of their tokens so far.
///
/// # Errors
/// If weights cannot be read, or the work was cancelled; the sequences then are what they were before.
pub fn forward<B: Backend>(pass: &Pass<B>, s: &mut State<B>, step: &mut Step, cancel: &Cancel) -> Result<()> {
    let (b, layers) = (pass.backend, pass.spec.num_layers);
    b.begin(pass.spec, step, s.workspace);
    b.embed(pass.spec, pass.weights, step, s.workspace); //                x  [m, hidden]
    for run in step.rows.chunk_by(|a, b| a.sequence == b.sequence) {
        if b.prune_kv(&mut s.kvs[run[0].sequence]) {
            step.meter.lap(Component::Pack);
        }
    }
    for index in 0..layers {
        cancel.check()?;
        block(pass, index, s, step)?;
    }
    observe(pass, Point::Residual, layers, s, step);
    Ok(())
}

/// One decoder layer: `x += attention(norm(x))`, then `x += mlp(norm(x))`, less what the selector leaves out.
///
/// # Errors
/// If weights cannot be read.
pub fn block<B: Backend>(pass: &Pass<B>, index: usize, s: &mut State<B>, step: &mut Step) -> Result<()> {
    let Pass { backend: b, spec, weights, selector } = *pass;
    let layer = &Layer { spec, weights, index, inputs: selector.inputs(index) };
    let [attention, mlp] = selector.blocks(index);
    let neurons = selector.neurons();
    let (ahead, here) = (neurons.filter(|n| n.look_ahead), neurons.filter(|n| !n.look_ahead));

    observe(pass, Point::Residual, index, s, step);
    if attention {
        let ahead = ahead.zip(s.selection.as_deref_mut());
        let ahead = ahead.map(|(n, selection)| Ahead { rule: n.rules.get(index).copied(), selection });
        b.attention_inputs(layer, step, s.kvs, ahead, s.workspace); //     q  [m, heads·d], k, v  [m, kv_heads·d]
        b.attend(layer, step, s.kvs, s.workspace); //                      attended  [m, heads·d]
        b.attention_output(layer, step, s.workspace); //                   x  [m, hidden]
    }
    observe(pass, Point::MiddleResidual, index, s, step);
    if mlp {
        if let (Some(n), Some(selection)) = (here, s.selection.as_deref_mut()) {
            b.select(layer, step, n.rules.get(index).copied(), s.workspace, selection);
        }
        b.mlp(layer, step, s.selection.as_deref(), s.workspace)?; //      x  [m, hidden]
    }
    if let Selector::Blocks(_) = selector {
        let bytes = b.block_bytes(weights, index);
        let run = [attention, mlp].into_iter().zip(bytes).filter(|(run, _)| *run).map(|(_, bytes)| bytes).sum();
        step.meter.active(index, step.rows.iter().map(|_| run), bytes.iter().sum());
    }
    Ok(())
}

/// Shows the residual stream to an observer that watches.
fn observe<B: Backend>(pass: &Pass<B>, point: Point, index: usize, s: &State<B>, step: &mut Step) {
    if step.observer.watches() {
        step.observer.see(index, point, &pass.backend.residual(s.workspace), step.rows.len());
    }
}
