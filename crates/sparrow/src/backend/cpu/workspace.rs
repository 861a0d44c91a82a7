//! Working memory of the forward pass; it grows to the largest step and is then reused, so that a step allocates nothing.

use super::buffers::{Attention, Mlp, Stream};
use super::inputs::ActiveInputs;
use super::pooled::NeuronPools;
use crate::backend::{Scorer, Setup};
use crate::error::Result;
use crate::residency::Placement;
use crate::weights::Weights;

/// What operations hand each other.
#[derive(Debug)]
pub struct Workspace {
    pub stream: Stream,
    pub attention: Attention,
    pub mlp: Mlp,
    /// To leave out inputs of projections.
    pub inputs: ActiveInputs,
    /// Where the MLPs' weights are not all in memory.
    pub pools: Option<NeuronPools>,
}

impl Workspace {
    /// Room for the usual step of a session.
    ///
    /// # Errors
    /// If pools of neurons are wanted and memory cannot be had, or a file cannot be opened.
    ///
    /// # Panics
    /// If neurons are selected and the weights are not neuron-major: [`Load`](crate::Load) sees to it.
    pub fn new(setup: &Setup, weights: &Weights) -> Result<Self> {
        let Setup { spec, placement, scorer, rows } = *setup;
        assert!(scorer.is_none() || weights.is_neuron_major(), "sparse selection needs neuron-major weights: use Load");
        let pools = match placement {
            Placement::Cache(cache) => {
                let gate_known = matches!(scorer, Some(Scorer::Gate(_)));
                Some(NeuronPools::new(spec, weights, cache, gate_known)?)
            }
            Placement::Mapped | Placement::Memory => None,
        };
        let mut inputs = ActiveInputs::default();
        inputs.reserve(rows, spec.intermediate_size.max(spec.q_size()).max(spec.hidden_size));
        let mut w = Workspace {
            stream: Stream::new(spec.hidden_size),
            attention: Attention::new(spec),
            mlp: Mlp::default(),
            inputs,
            pools,
        };
        w.resize(rows, spec.intermediate_size);
        Ok(w)
    }

    /// Sizes every buffer for `m` rows of a model with so many neurons a layer.
    pub fn resize(&mut self, m: usize, intermediate: usize) {
        self.stream.resize(m);
        self.attention.resize(m);
        self.mlp.resize(m * intermediate);
    }
}
