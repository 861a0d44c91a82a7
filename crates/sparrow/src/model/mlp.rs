//! One MLP block: the selector says which neurons count, then they are gathered, or all are computed and the rest masked.

use sparrow_kernels::{SparseMlp, SparseMlpInputs};

use super::neuron_cache::Inputs;
use super::project::project;
use super::spec::ModelSpec;
use super::weights::MlpWeights;
use super::{Component, Scratch};
use crate::backend::Cpu;
use crate::error::Result;
use crate::sparsity::{Observer, Point, Projection, Selection, Selector};

/// Rows up to which active neurons (and inputs) are gathered. Above it the union of the rows' active sets is close to
/// everything and the matrix unit is the bound, so all are computed and inactive ones masked: the same result at prefill
/// speed.
pub(crate) const GATHER_ROWS: usize = 8;

/// Active fraction of the union of a few rows from which computing all neurons is as fast as gathering them: 0.85 to 1, for
/// every number of rows and element type (example `union` of the kernels, recorded in `benchmarks/sparsity`).
const DENSE_FROM: f64 = 0.9;

/// `s.out = mlp(s.h)`, both `[m, hidden]`: `down(act(gate·h) ⊙ up·h)` over the neurons that `selector` keeps for each row.
///
/// # Errors
/// If weights cannot be read.
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
) -> Result<()> {
    if s.cache.is_some() {
        return cached(spec, cpu, selector, layer, w, m, s, observer);
    }
    let n = spec.intermediate_size;
    if !selector.selects_neurons() {
        observer.mlp(layer, &s.h, m, None);
        gate_up(cpu, selector, layer, w, m, false, s);
        down(spec, cpu, selector, layer, w, m, s, observer);
        return Ok(());
    }
    let many = m > GATHER_ROWS;
    if many {
        gate_up(cpu, selector, layer, w, m, false, s);
    }
    if !selector.looks_ahead() {
        // Of an ungated MLP the up projection decides.
        let deciding = if w.gate.is_some() { &mut s.gate } else { &mut s.up };
        selector.select(spec, cpu, layer, w, &s.h, m, many, deciding, &mut s.selection, &mut s.clock);
    }
    observer.mlp(layer, &s.h, m, Some(&s.selection));

    let known = selector.computes_gate();
    let predicting = if known && many { 0 } else { selector.bytes(layer, w) };
    s.stats.add(layer, s.selection.active, (m * n) as u64, predicting);
    if many || s.selection.ids.len() as f64 > DENSE_FROM * n as f64 {
        if !many {
            gate_up(cpu, selector, layer, w, m, known, s);
        }
        down(spec, cpu, selector, layer, w, m, s, observer);
        return Ok(());
    }
    let gate_known = known && w.gate.is_some();
    gather(spec, cpu, w, m, gate_known, s);
    s.clock.lap(Component::SparseMlp);
    let gathered = w.neuron_bytes() - if gate_known { w.gate_row_bytes() } else { 0 };
    s.stats.layer_bytes += gathered * s.selection.ids.len() as u64;
    Ok(())
}

/// [`mlp`] where weights are not all in memory: few rows compute with the active neurons in the pool, others with all of them as
/// they are read.
#[allow(clippy::too_many_arguments)]
fn cached(
    spec: &ModelSpec,
    cpu: &Cpu,
    selector: &Selector,
    layer: usize,
    w: &MlpWeights,
    m: usize,
    s: &mut Scratch,
    observer: &mut dyn Observer,
) -> Result<()> {
    let cache = s.cache.as_mut().expect("called where there is a cache");
    let selects = selector.selects_neurons();
    if selects && !selector.looks_ahead() {
        let deciding = if w.gate.is_some() { &mut s.gate } else { &mut s.up };
        selector.select(spec, cpu, layer, w, &s.h, m, false, deciding, &mut s.selection, &mut s.clock);
    }
    observer.mlp(layer, &s.h, m, selects.then_some(&s.selection));
    let gate_known = selector.computes_gate() && w.gate.is_some();
    let inputs = Inputs { spec, cpu, layer, w, h: &s.h, m, gate_values: gate_known.then_some(s.gate.as_slice()) };
    let (read, computed) = if selects && m <= GATHER_ROWS {
        (cache.gather(&inputs, &s.selection, &mut s.out)?, s.selection.ids.len())
    } else {
        let masked = (selects && !s.selection.zeros_only).then_some(&s.selection);
        (cache.stream(&inputs, masked, &mut s.out)?, spec.intermediate_size)
    };
    s.clock.lap(Component::SparseMlp);
    if selects {
        s.stats.add(layer, s.selection.active, (m * spec.intermediate_size) as u64, selector.bytes(layer, w));
    }
    let neuron = w.neuron_bytes() - if gate_known { w.gate_row_bytes() } else { 0 };
    s.stats.layer_bytes += neuron * computed as u64;
    s.stats.store_bytes += read;
    Ok(())
}

/// `s.out` from the selected neurons alone.
fn gather(spec: &ModelSpec, cpu: &Cpu, w: &MlpWeights, m: usize, gate_known: bool, s: &mut Scratch) {
    let Selection { masks, ids, .. } = &s.selection;
    let mlp = SparseMlp {
        gate: w.gate.as_ref().map(|g| g.weight.stored()),
        up: w.up.weight.stored(),
        down: w.down.weight.stored(),
        gate_bias: w.gate.as_ref().and_then(|g| g.bias.as_deref()),
        up_bias: w.up.bias.as_deref(),
        down_bias: w.down.bias.as_deref(),
        activation: spec.activation,
        packed: None,
    };
    // One row's mask is the union itself.
    let masks = (m > 1).then_some(masks.as_slice());
    let gate = gate_known.then_some(s.gate.as_slice());
    let inputs = SparseMlpInputs { x: &s.h, rows: m, neurons: ids, masks, gate };
    cpu.compute.sparse_mlp(&mlp, &inputs, &mut s.out);
}

/// Gate and up of every neuron, less what deciding on neurons has computed already if it is `decided`.
fn gate_up(cpu: &Cpu, selector: &Selector, layer: usize, w: &MlpWeights, m: usize, decided: bool, s: &mut Scratch) {
    use Projection::{Gate, Up};
    let (h, inputs, stats) = (&s.h, &mut s.inputs, &mut s.stats);
    match (&w.gate, decided) {
        (Some(gate), false) => {
            project(cpu, selector, layer, h, m, [(Gate, gate, &mut s.gate), (Up, &w.up, &mut s.up)], inputs, stats);
        }
        (Some(_), true) | (None, false) => project(cpu, selector, layer, h, m, [(Up, &w.up, &mut s.up)], inputs, stats),
        (None, true) => {}
    }
    s.clock.lap(Component::GateUp);
}

/// `s.out` from gate and up of every neuron: `down(act(gate) ⊙ up)`, or `down(act(up))`, inactive neurons zeroed.
#[allow(clippy::too_many_arguments)]
fn down(
    spec: &ModelSpec,
    cpu: &Cpu,
    selector: &Selector,
    layer: usize,
    w: &MlpWeights,
    m: usize,
    s: &mut Scratch,
    observer: &mut dyn Observer,
) {
    if w.gate.is_some() {
        cpu.compute.gated(spec.activation, &s.gate, &s.up, &mut s.neurons);
    } else {
        s.neurons.copy_from_slice(&s.up);
        cpu.compute.activate(spec.activation, &mut s.neurons);
    }
    if selector.selects_neurons() {
        s.selection.mask(cpu, &mut s.neurons, spec.intermediate_size);
    }
    s.clock.lap(Component::Activation);
    observer.see(layer, Point::Neurons, &s.neurons, m);
    project(
        cpu,
        selector,
        layer,
        &s.neurons,
        m,
        [(Projection::Down, &w.down, &mut s.out)],
        &mut s.inputs,
        &mut s.stats,
    );
    s.clock.lap(Component::Down);
}
