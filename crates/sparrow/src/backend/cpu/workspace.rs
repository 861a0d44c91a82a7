//! Working memory of the forward pass; it grows to the largest step and is then reused, so that a step allocates nothing.

use super::inputs::ActiveInputs;
use super::pooled::NeuronPools;
use crate::backend::{Scorer, Setup};
use crate::error::Result;
use crate::residency::Placement;
use crate::spec::{ModelSpec, Rope};
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

/// The residual stream, and what blocks take from it and add to it. `[m, hidden]` each.
#[derive(Debug)]
pub struct Stream {
    hidden: usize,
    /// The residual stream.
    pub x: Vec<f32>,
    /// What enters a block; then what attention adds.
    pub h: Vec<f32>,
    /// What the MLP adds.
    pub out: Vec<f32>,
}

/// Of an attention block.
#[derive(Debug)]
pub struct Attention {
    q_size: usize,
    kv_size: usize,
    /// `[m, heads · head_dim]`.
    pub q: Vec<f32>,
    /// `[m, kv_heads · head_dim]`.
    pub k: Vec<f32>,
    /// `[m, kv_heads · head_dim]`.
    pub v: Vec<f32>,
    /// `[m, heads · head_dim]`, with room for `[m, kv_heads · head_dim]` before.
    pub attended: Vec<f32>,
    /// One for each of the model's ropes.
    pub ropes: Vec<RopeTable>,
}

/// Of an MLP, or of a part of its neurons. `[m, neurons]` each.
#[derive(Debug, Default)]
pub struct Mlp {
    pub gate: Vec<f32>,
    pub up: Vec<f32>,
    /// What enters the down projection.
    pub neurons: Vec<f32>,
    /// What enters the MLP was computed to select by.
    pub normed: bool,
}

/// The rotations of a step's rows by one of the model's ropes.
#[derive(Debug)]
pub struct RopeTable {
    /// `[m, rotary_dim / 2]`.
    pub cos: Vec<f32>,
    /// `[m, rotary_dim / 2]`.
    pub sin: Vec<f32>,
    /// `[rotary_dim / 2]`.
    pub frequencies: Vec<f32>,
}

impl Workspace {
    /// Room for the usual step of a session.
    ///
    /// # Errors
    /// If pools of neurons are wanted and memory cannot be had, or a file cannot be opened.
    pub fn new(setup: &Setup, weights: &Weights) -> Result<Self> {
        let Setup { spec, placement, scorer, rows } = *setup;
        let pools = match placement {
            Placement::Cache(cache) => {
                let gate_known = matches!(scorer, Some(Scorer::Gate));
                Some(NeuronPools::new(spec, weights, cache, gate_known)?)
            }
            Placement::Mapped | Placement::Memory => None,
        };
        let mut inputs = ActiveInputs::default();
        inputs.reserve(rows, spec.intermediate_size.max(spec.q_size()).max(spec.hidden_size));
        let mut w = Workspace {
            stream: Stream { hidden: spec.hidden_size, x: Vec::new(), h: Vec::new(), out: Vec::new() },
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

impl Stream {
    /// Sizes the buffers for `m` rows.
    pub fn resize(&mut self, m: usize) {
        [&mut self.x, &mut self.h, &mut self.out].into_iter().for_each(|buffer| buffer.resize(m * self.hidden, 0.0));
    }
}

impl Attention {
    fn new(spec: &ModelSpec) -> Self {
        let table =
            |rope: &Rope| RopeTable { cos: Vec::new(), sin: Vec::new(), frequencies: vec![0.0; rope.rotary_dim / 2] };
        Attention {
            q_size: spec.q_size(),
            kv_size: spec.kv_size(),
            q: Vec::new(),
            k: Vec::new(),
            v: Vec::new(),
            attended: Vec::new(),
            ropes: spec.ropes().map(table).collect(),
        }
    }

    fn resize(&mut self, m: usize) {
        let Attention { q_size, kv_size, .. } = *self;
        self.q.resize(m * q_size, 0.0);
        self.k.resize(m * kv_size, 0.0);
        self.v.resize(m * kv_size, 0.0);
        self.attended.resize(m * q_size.max(kv_size), 0.0);
        for RopeTable { cos, sin, frequencies } in &mut self.ropes {
            cos.resize(m * frequencies.len(), 0.0);
            sin.resize(m * frequencies.len(), 0.0);
        }
    }
}

impl Mlp {
    /// Sizes the buffers for so many values.
    pub fn resize(&mut self, len: usize) {
        [&mut self.gate, &mut self.up, &mut self.neurons].into_iter().for_each(|buffer| buffer.resize(len, 0.0));
    }
}
