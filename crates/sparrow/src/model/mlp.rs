//! One MLP block: the selector says which neurons count, then they are gathered, or all are computed and the rest masked.

use sparrow_kernels::SparseMlp;

use super::spec::ModelSpec;
use super::weights::MlpWeights;
use super::{Component, Scratch};
use crate::backend::Cpu;
use crate::sparsity::{Observer, Selection, Selector};

/// Rows up to which active neurons are gathered. Above it the union of the rows' active sets is close to everything and
/// the matrix unit is the bound, so all neurons are computed and inactive ones masked: the same result at prefill speed.
const GATHER_ROWS: usize = 8;

/// `s.out = mlp(s.h)`, both `[m, hidden]`: `down(act(gate·h) ⊙ up·h)` over the neurons that `selector` keeps for each row.
#[allow(clippy::too_many_arguments)]
pub(crate) fn mlp(
    spec: &ModelSpec,
    cpu: &Cpu,
    selector: &Selector,
    layer: usize,
    w: &MlpWeights,
    m: usize,
    s: &mut Scratch,
    observer: &mut dyn Observer,
) {
    let everything = selector.is_dense() || m > GATHER_ROWS;
    if everything {
        project(cpu, w, m, s);
    }
    // Of an ungated MLP the up projection decides.
    let deciding = if w.gate.is_some() { &mut s.gate } else { &mut s.up };
    let selected = selector.select(spec, cpu, layer, w, &s.h, m, everything, deciding, &mut s.selection, &mut s.clock);
    observer.mlp(layer, &s.h, m, selected.then_some(&s.selection));

    let (neurons, all) = (spec.intermediate_size, spec.intermediate_size as u64);
    if everything {
        activate(spec, cpu, w, s);
        s.selection.mask(cpu, &mut s.neurons, neurons);
        s.clock.lap(Component::Activation);
        cpu.down(&w.down, &s.neurons, m, &mut s.out);
        s.clock.lap(Component::Down);
        let active = if selected { s.selection.active } else { m as u64 * all };
        let predicting = if selector.computes_gate() { 0 } else { selector.bytes(layer, w) };
        s.stats.add(layer, m, active, w.neuron_bytes() * all + predicting);
    } else {
        let gate_known = selector.computes_gate() && w.gate.is_some();
        gather(spec, cpu, w, m, gate_known, s);
        s.clock.lap(Component::SparseMlp);
        let gathered = w.neuron_bytes() - if gate_known { w.gate_row_bytes() } else { 0 };
        let bytes = selector.bytes(layer, w) + gathered * s.selection.ids.len() as u64;
        s.stats.add(layer, m, s.selection.active, bytes);
    }
}

/// `s.out` from the selected neurons alone.
fn gather(spec: &ModelSpec, cpu: &Cpu, w: &MlpWeights, m: usize, gate_known: bool, s: &mut Scratch) {
    let Selection { masks, ids, .. } = &s.selection;
    let mlp = SparseMlp {
        gate: w.gate.as_ref().map(|g| g.weight.matrix()),
        up: w.up.weight.matrix(),
        down: w.down.weight.matrix(),
        gate_bias: w.gate.as_ref().and_then(|g| g.bias.as_deref()),
        up_bias: w.up.bias.as_deref(),
        down_bias: w.down.bias.as_deref(),
        activation: spec.activation,
    };
    // One row's mask is the union itself.
    let masks = (m > 1).then_some(masks.as_slice());
    let gate = gate_known.then_some(s.gate.as_slice());
    cpu.compute.sparse_mlp(&mlp, &s.h, m, ids, masks, gate, &mut s.out);
}

/// Gate and up of every neuron.
fn project(cpu: &Cpu, w: &MlpWeights, m: usize, s: &mut Scratch) {
    match &w.gate {
        Some(gate) => cpu.linear(&s.h, m, [(gate, &mut s.gate), (&w.up, &mut s.up)]),
        None => cpu.linear(&s.h, m, [(&w.up, &mut s.up)]),
    }
    s.clock.lap(Component::GateUp);
}

/// `s.neurons = act(gate) ⊙ up`, or `act(up)`.
fn activate(spec: &ModelSpec, cpu: &Cpu, w: &MlpWeights, s: &mut Scratch) {
    if w.gate.is_some() {
        cpu.compute.gated(spec.activation, &s.gate, &s.up, &mut s.neurons);
    } else {
        s.neurons.copy_from_slice(&s.up);
        cpu.compute.activate(spec.activation, &mut s.neurons);
    }
}
