//! What operations hand each other, block by block.

use crate::spec::{ModelSpec, Rope};

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

impl Stream {
    /// Of a model of that hidden size.
    pub fn new(hidden: usize) -> Self {
        Stream { hidden, x: Vec::new(), h: Vec::new(), out: Vec::new() }
    }

    /// Sizes the buffers for `m` rows.
    pub fn resize(&mut self, m: usize) {
        [&mut self.x, &mut self.h, &mut self.out].into_iter().for_each(|buffer| buffer.resize(m * self.hidden, 0.0));
    }
}

impl Attention {
    /// Of a model.
    pub fn new(spec: &ModelSpec) -> Self {
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

    /// Sizes the buffers for `m` rows.
    pub fn resize(&mut self, m: usize) {
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
