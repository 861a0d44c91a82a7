//! What neurons are judged by: their activated gates.

use sparrow::Cpu;
use sparrow::internals::weights::Linear;
use sparrow_kernels::Activation;

/// Gate values of observed MLP inputs.
pub(crate) struct Gates<'a> {
    cpu: &'a Cpu,
    activation: Activation,
}

impl<'a> Gates<'a> {
    pub fn new(cpu: &'a Cpu, activation: Activation) -> Self {
        Gates { cpu, activation }
    }

    /// `values = act(gate·h)`, `[m, intermediate]`.
    pub fn activated(&self, gate: &Linear, h: &[f32], m: usize, values: &mut Vec<f32>) {
        values.resize(m * gate.outputs(), 0.0);
        self.cpu.linear(h, m, [(gate.view(), values)]);
        self.cpu.compute.activate(self.activation, values);
    }
}
