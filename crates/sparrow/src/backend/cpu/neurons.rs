//! All neurons of an MLP, or of a part of one.

use super::buffers::Mlp;
use super::inputs::ActiveInputs;
use super::machine::{At, Cpu};
use crate::backend::{Component, Point, Projection, Step};
use crate::weights::{LinearView, MlpWeights};

/// What of a layer's gate and up is known before its plan is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Known {
    /// Neither.
    Nothing,
    /// What decides: the gate, or up without a gate.
    Deciding,
    /// Both.
    GateAndUp,
}

/// What an MLP computes with beside its weights.
pub struct Inputs<'a> {
    pub cpu: &'a Cpu,
    pub layer: &'a At<'a>,
    /// `[m, hidden]`.
    pub h: &'a [f32],
    pub known: Known,
}

impl<'a> Inputs<'a> {
    /// The layer's MLP.
    pub fn weights(&self) -> &'a MlpWeights {
        &self.layer.weights.layers[self.layer.index].mlp
    }

    /// Whether gate values need not be computed again.
    pub fn gate_known(&self) -> bool {
        self.known != Known::Nothing && self.weights().gate.is_some()
    }
}

/// Neurons that are all computed: those of a layer, or a chunk of them.
pub struct Part<'a> {
    pub gate: Option<LinearView<'a>>,
    pub up: LinearView<'a>,
    pub down: LinearView<'a>,
    /// `[m, ceil(neurons / 64)]`: what is not set is left out.
    pub masks: Option<&'a [u64]>,
    /// What stands for neurons that are left out, `[neurons]`; none: zeros.
    pub left_out: Option<&'a [f32]>,
}

/// `out`, `[m, hidden]`, from all neurons of a part: `down(act(gate) ⊙ up)`, or `down(act(up))`, inactive neurons left out.
pub fn all(x: &Inputs, step: &mut Step, part: &Part, mlp: &mut Mlp, inputs: &mut ActiveInputs, out: &mut [f32]) {
    use Projection::{Down, Gate, Up};
    let &Inputs { cpu, layer, h, known } = x;
    let (activation, m) = (layer.spec.activation, step.rows.len());
    let n = mlp.neurons.len() / m;
    match (part.gate, known) {
        (Some(gate), Known::Nothing) => {
            cpu.project(layer, step, h, [(Gate, gate, &mut mlp.gate), (Up, part.up, &mut mlp.up)], inputs);
        }
        (Some(_), Known::Deciding) | (None, Known::Nothing) => {
            cpu.project(layer, step, h, [(Up, part.up, &mut mlp.up)], inputs);
        }
        (_, Known::GateAndUp) | (None, Known::Deciding) => {}
    }
    step.meter.lap(Component::GateUp);
    if part.gate.is_some() {
        cpu.compute.gated(activation, &mlp.gate, &mlp.up, &mut mlp.neurons);
    } else {
        mlp.neurons.copy_from_slice(&mlp.up);
        cpu.compute.activate(activation, &mut mlp.neurons);
    }
    if let Some(masks) = part.masks {
        match part.left_out {
            None => cpu.compute.zero_unset(&mut mlp.neurons, n, masks),
            Some(values) => cpu.compute.replace_unset(&mut mlp.neurons, values, masks),
        }
    }
    step.meter.lap(Component::Activation);
    if n == layer.spec.intermediate_size {
        step.observer.see(layer.index, Point::Neurons, &mlp.neurons, m);
    }
    cpu.project(layer, step, &mlp.neurons, [(Down, part.down, out)], inputs);
    step.meter.lap(Component::Down);
}
