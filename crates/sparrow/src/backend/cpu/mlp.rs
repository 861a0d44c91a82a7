//! The MLP block: which neurons count, then gathering them, or computing all and leaving out the rest.

use sparrow_kernels::{SparseMlp, SparseMlpInputs};

use super::machine::{At, Cpu, GATHER_ROWS};
use super::neurons::{Inputs, Known, Part, all};
use super::pooled::NeuronPools;
use super::select::{Given, Selection};
use super::workspace::Workspace;
use crate::backend::{Component, Projection, Step, Threshold};
use crate::error::Result;
use crate::weights::MlpWeights;

/// Active fraction of the union of a few rows from which computing all neurons is as fast as gathering them: 0.85 to 1, for
/// every number of rows and element type (example `union` of the kernels, recorded in `benchmarks/records/2026-11-21-AMD-EPYC/sparsity/union.txt`).
pub const DENSE_FROM: f64 = 0.9;

/// What is computed of an MLP, decided once it is known which neurons are active.
enum Plan<'a> {
    /// All neurons.
    Dense,
    /// All neurons; those that are inactive for a row are left out.
    Mask(&'a Selection),
    /// The active neurons, where their weights are.
    Gather(&'a Selection),
    /// The active neurons, from pools that follow them.
    Pooled(&'a Selection, &'a mut NeuronPools),
    /// All neurons as their weights are read, past the pools.
    Streamed(Option<&'a Selection>, &'a mut NeuronPools),
}

impl<'a> Plan<'a> {
    /// For `m` rows of a layer with `n` neurons.
    fn new(selection: Option<&'a Selection>, m: usize, n: usize, pools: Option<&'a mut NeuronPools>) -> Self {
        let few = m <= GATHER_ROWS;
        match (selection, pools) {
            (Some(selection), Some(pools)) if few => Plan::Pooled(selection, pools),
            (selection, Some(pools)) => Plan::Streamed(selection, pools),
            (None, None) => Plan::Dense,
            (Some(selection), None) if few && selection.ids.len() as f64 <= DENSE_FROM * n as f64 => {
                Plan::Gather(selection)
            }
            (Some(selection), None) => Plan::Mask(selection),
        }
    }
}

/// What selecting has computed of gate and up. Many rows compute both at once where weights are in memory.
fn known(selection: &Selection, m: usize, pooled: bool) -> Known {
    match selection.scores_by_gate() {
        false => Known::Nothing,
        true if m > GATHER_ROWS && !pooled => Known::GateAndUp,
        true => Known::Deciding,
    }
}

/// Norms what enters the MLP and finds the neurons that are active for it.
pub fn select(
    cpu: &Cpu,
    layer: &At,
    step: &mut Step,
    rule: Option<Threshold>,
    w: &mut Workspace,
    selection: &mut Selection,
) {
    use Projection::{Gate, Up};
    norm(cpu, layer, step, w);
    w.mlp.normed = true;
    let Workspace { stream: s, mlp, inputs, pools, .. } = w;
    let weights = &layer.weights.layers[layer.index].mlp;
    let up = weights.up.view();
    match (known(selection, step.rows.len(), pools.is_some()), &weights.gate) {
        (Known::Nothing, _) => {}
        (Known::GateAndUp, Some(gate)) => {
            cpu.project(layer, step, &s.h, [(Gate, gate.view(), &mut mlp.gate), (Up, up, &mut mlp.up)], inputs);
            step.meter.lap(Component::GateUp);
        }
        (Known::GateAndUp, None) => {
            cpu.project(layer, step, &s.h, [(Up, up, &mut mlp.up)], inputs);
            step.meter.lap(Component::GateUp);
        }
        (Known::Deciding, gate) => {
            let (deciding, out) = match gate {
                Some(gate) => (gate.view(), &mut mlp.gate),
                None => (up, &mut mlp.up),
            };
            cpu.project(layer, step, &s.h, [(Gate, deciding, out)], inputs);
            step.meter.lap(Component::Scores);
        }
    }
    let preferred = pools.as_ref().and_then(|pools| pools.preferred(layer.index));
    selection.find(cpu, layer, step, rule, &Given { h: &s.h, mlp, preferred });
}

fn norm(cpu: &Cpu, layer: &At, step: &mut Step, w: &mut Workspace) {
    let weights = layer.weights.layers[layer.index].mlp_norm.as_ref();
    cpu.norm_or_copy(&layer.spec.norm, weights, &w.stream.x, &mut w.stream.h); //         h  [m, hidden]
    step.meter.lap(Component::Norm);
}

/// `x += mlp(norm(x))` over the neurons of `selection`, or all.
///
/// # Errors
/// If weights cannot be read.
pub fn mlp(cpu: &Cpu, layer: &At, step: &mut Step, selection: Option<&Selection>, w: &mut Workspace) -> Result<()> {
    if !std::mem::take(&mut w.mlp.normed) {
        norm(cpu, layer, step, w);
    }
    let Workspace { stream: s, mlp, inputs, pools, .. } = w;
    let (spec, layer_weights, m) = (layer.spec, &layer.weights.layers[layer.index], step.rows.len());
    let known = selection.map_or(Known::Nothing, |selection| known(selection, m, pools.is_some()));
    step.observer.mlp(layer.index, &s.h, m, selection.map(Selection::active));
    let x = Inputs { cpu, layer, h: &s.h, known };
    let out = &mut s.out;
    match Plan::new(selection, m, spec.intermediate_size, pools.as_mut()) {
        Plan::Dense => all(&x, step, &whole(&layer_weights.mlp), mlp, inputs, out),
        Plan::Mask(selection) => {
            let left_out = selection.left_out(layer.index).map(|neurons| neurons.left_out.as_slice());
            let part = Part { masks: selection.masks(), left_out, ..whole(&layer_weights.mlp) };
            all(&x, step, &part, mlp, inputs, out);
        }
        Plan::Gather(selection) => gather(&x, step, selection, &mlp.gate, out),
        Plan::Pooled(selection, pools) => pools.gather(&x, step, selection, &mlp.gate, out)?,
        Plan::Streamed(selection, pools) => pools.stream(&x, step, selection, &mlp.gate, out)?,
    }
    if let Some(post_norm) = &layer_weights.mlp_post_norm {
        cpu.norm_in_place(&spec.norm, post_norm, &mut s.out, &mut s.h);
    }
    cpu.compute.add_assign(&mut s.x, &s.out);
    step.meter.lap(Component::Norm);
    Ok(())
}

/// All neurons of a layer.
fn whole(weights: &MlpWeights) -> Part<'_> {
    let gate = weights.gate.as_ref().map(|gate| gate.view());
    Part { gate, up: weights.up.view(), down: weights.down.view(), masks: None, left_out: None }
}

/// `out`, `[m, hidden]`, from the selected neurons alone; `gate` has their gate's values where these are known.
fn gather(x: &Inputs, step: &mut Step, selection: &Selection, gate: &[f32], out: &mut [f32]) {
    let (w, m) = (x.weights(), step.rows.len());
    let gate_known = x.gate_known();
    let left_out = selection.left_out(x.layer.index);
    let neurons = SparseMlp {
        gate: w.gate.as_ref().map(|g| g.weight.stored()),
        up: w.up.weight.stored(),
        down: w.down.weight.stored(),
        gate_bias: w.gate.as_ref().and_then(|g| g.bias.as_deref()),
        up_bias: w.up.bias.as_deref(),
        down_bias: left_out.map(|neurons| neurons.rest.as_slice()).or(w.down.bias.as_deref()),
        left_out: left_out.map(|neurons| neurons.left_out.as_slice()),
        activation: x.layer.spec.activation,
        pooled: None,
    };
    // One row's mask is the union itself.
    let masks = (m > 1).then_some(selection.masks.as_slice());
    let gate = gate_known.then_some(gate);
    let inputs = SparseMlpInputs { x: x.h, rows: m, neurons: &selection.ids, masks, gate };
    x.cpu.compute.sparse_mlp(&neurons, &inputs, out);
    step.meter.lap(Component::SparseMlp);
    let gathered = w.neuron_bytes() - if gate_known { w.gate_row_bytes() } else { 0 };
    step.meter.read(gathered * selection.ids.len() as u64);
}
