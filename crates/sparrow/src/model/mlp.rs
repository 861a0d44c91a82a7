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
    let selected = selector.select(spec, cpu, layer, w, &s.h, m, &mut s.gate, &mut s.selection, &mut s.clock);
    observer.mlp(layer, &s.h, m, selected.then_some(&s.selection));
    // Without a gate the selector computed `up` in its place, which the kernel does not take.
    let gate_known = selected && selector.computes_gate() && w.gate.is_some();
    let all = spec.intermediate_size as u64;
    if !selected {
        dense(spec, cpu, w, m, s, false);
        s.stats.add(layer, m, m as u64 * all, w.neuron_bytes() * all);
    } else if m <= GATHER_ROWS {
        let Selection { masks, ids, .. } = &s.selection;
        let sparse = SparseMlp {
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
        cpu.compute.sparse_mlp(&sparse, &s.h, m, ids, masks, gate, &mut s.out);
        s.clock.lap(Component::SparseMlp);
        let gathered = w.neuron_bytes() - if gate_known { w.gate_row_bytes() } else { 0 };
        let bytes = selector.bytes(layer, w) + gathered * ids.len() as u64;
        s.stats.add(layer, m, s.selection.active, bytes);
    } else {
        dense(spec, cpu, w, m, s, gate_known);
        let bytes = w.neuron_bytes() * all + if gate_known { 0 } else { selector.bytes(layer, w) };
        s.stats.add(layer, m, s.selection.active, bytes);
    }
}

/// Every neuron is computed; with a selection, the inactive ones are zeroed before the down projection.
fn dense(spec: &ModelSpec, cpu: &Cpu, w: &MlpWeights, m: usize, s: &mut Scratch, gate_known: bool) {
    match &w.gate {
        Some(_) if gate_known => cpu.linear(&s.h, m, [(&w.up, &mut s.up)]),
        Some(gate) => cpu.linear(&s.h, m, [(gate, &mut s.gate), (&w.up, &mut s.up)]),
        None => cpu.linear(&s.h, m, [(&w.up, &mut s.up)]),
    }
    s.clock.lap(Component::GateUp);
    if w.gate.is_some() {
        cpu.compute.gated(spec.activation, &s.gate, &s.up, &mut s.neurons);
    } else {
        s.neurons.copy_from_slice(&s.up);
        cpu.compute.activate(spec.activation, &mut s.neurons);
    }
    s.selection.mask(&mut s.neurons, spec.intermediate_size);
    s.clock.lap(Component::Activation);
    cpu.down(&w.down, &s.neurons, m, &mut s.out);
    s.clock.lap(Component::Down);
}
