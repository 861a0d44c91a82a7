//! Activation functions, alone and as the gate of a gated MLP.

use crate::compute::Compute;
use crate::kernels::activation::Activation;

/// The work of one activation, in multiply-adds.
const COST: usize = 4;

impl Compute {
    /// xᵢ ← a(xᵢ), any shape.
    ///
    /// Against an exact evaluation the error is at most 2⁻²¹ · |xᵢ| (for [`Activation::ReluSquared`] relative to xᵢ²).
    pub fn activate(&self, a: Activation, x: &mut [f32]) {
        // SAFETY: the table holds only kernels that this CPU can run.
        self.workers.split_mut(x, COST, &|x| unsafe { (self.kernels.activate)(a, x) });
    }

    /// outᵢ = a(gateᵢ) · upᵢ, of [`Activation::DoubleRelu`] a(gateᵢ) · a(upᵢ): the gate of a gated MLP (GLU variants, arXiv 2002.05202). Any shape, the same for all.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn gated(&self, a: Activation, gate: &[f32], up: &[f32], out: &mut [f32]) {
        assert_eq!(gate.len(), out.len(), "gated: gate.len() and out.len() differ");
        assert_eq!(up.len(), out.len(), "gated: up.len() and out.len() differ");
        self.workers.split_mut_indexed(out, COST, &|start, out| {
            let (gate, up) = (&gate[start..][..out.len()], &up[start..][..out.len()]);
            // SAFETY: the table holds only kernels that this CPU can run.
            unsafe { (self.kernels.gated)(a, gate, up, out) }
        });
    }
}
