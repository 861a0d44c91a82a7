//! The ends of the forward pass: from tokens to the residual stream, and from it to logits.

use sparrow_kernels::LinearPart;

use super::buffers::{RopeTable, Stream};
use super::machine::Cpu;
use super::workspace::Workspace;
use crate::backend::{Component, Row, Step};
use crate::spec::{ModelSpec, Positions};
use crate::tensor::Weight;
use crate::weights::Weights;

/// Sizes working memory for `rows`, and computes the cosines and sines of their positions, `[rows, rotary_dim / 2]`, for each of
/// the model's ropes.
pub fn begin(spec: &ModelSpec, rows: &[Row], w: &mut Workspace) {
    w.resize(rows.len(), spec.intermediate_size);
    w.mlp.normed = false;
    for (rope, RopeTable { cos, sin, frequencies }) in spec.ropes().zip(&mut w.attention.ropes) {
        let half = frequencies.len();
        for (r, row) in rows.iter().enumerate() {
            if rope.is_dynamic() || r == 0 {
                rope.frequencies(row.sequence_len, spec.max_position_embeddings, frequencies);
            }
            for (i, f) in frequencies.iter().enumerate() {
                // The angle is rounded to f32 before the cosine, as in the reference implementation.
                let (sine, cosine) = (row.position as f32 * f).sin_cos();
                (sin[r * half + i], cos[r * half + i]) = (sine * rope.attention_factor, cosine * rope.attention_factor);
            }
        }
    }
}

/// `x` from the embeddings of the rows' tokens, and of their positions where these are learned.
pub fn embed(cpu: &Cpu, spec: &ModelSpec, weights: &Weights, step: &mut Step, s: &mut Stream) {
    for (row, x) in step.rows.iter().zip(s.x.chunks_exact_mut(spec.hidden_size)) {
        row_of(&weights.embedding, row.token as usize, spec.embedding_scale, x);
    }
    if let (Positions::Learned { offset }, Some(table)) = (&spec.positions, &weights.positions) {
        for (row, h) in step.rows.iter().zip(s.h.chunks_exact_mut(spec.hidden_size)) {
            row_of(table, row.position + offset, 1.0, h);
        }
        cpu.compute.add_assign(&mut s.x, &s.h);
    }
    step.meter.lap(Component::Embed);
}

/// Row `id` of an embedding table, times `scale`.
fn row_of(table: &Weight, id: usize, scale: f32, out: &mut [f32]) {
    table.decode(id..id + 1, out);
    if scale != 1.0 {
        out.iter_mut().for_each(|v| *v *= scale);
    }
}

/// `logits = head(norm(x))` of the rows numbered `rows`, `[rows, vocab]`.
pub fn head(cpu: &Cpu, spec: &ModelSpec, weights: &Weights, rows: &[usize], s: &mut Stream, logits: &mut [f32]) {
    let hidden = spec.hidden_size;
    let mut done = 0;
    for run in rows.chunk_by(|a, b| a + 1 == *b) {
        let (from, to) = (run[0] * hidden..(run[0] + run.len()) * hidden, done * hidden..(done + run.len()) * hidden);
        cpu.norm(&spec.norm, &weights.norm, &s.x[from], &mut s.h[to]);
        done += run.len();
    }
    let weights = weights.head.stored();
    cpu.compute.linear(&s.h[..done * hidden], done, &mut [LinearPart { weights, bias: None, out: logits }]);
    if let Some(cap) = spec.logits_soft_cap {
        logits.iter_mut().for_each(|v| *v = cap * (*v / cap).tanh());
    }
}
