//! The one forward pass: prefill and decode, one sequence or many, dense or sparse, every architecture.

use super::kv::KvCache;
use super::mlp::{GATHER_ROWS, mlp};
use super::project::project;
use super::spec::Positions;
use super::{Component, Model, RopeTable, Row, Scratch};
use crate::backend::Cpu;
use crate::error::Result;
use crate::sparsity::{Observer, Point, Projection, Selector};

/// Runs `rows` (tokens with their sequences and positions, `m` of them) through all layers. On return `s.x` holds the
/// final hidden states `[m, hidden]`, before the last norm, and the caches hold the rows' keys and values.
///
/// # Errors
/// If weights cannot be read; the caches then hold what they held before.
pub(crate) fn forward(
    model: &Model,
    cpu: &Cpu,
    selector: &Selector,
    caches: &mut [KvCache],
    rows: &[Row],
    s: &mut Scratch,
    observer: &mut dyn Observer,
) -> Result<()> {
    let layers = model.weights.layers.len();
    prepare_rows(model, cpu, rows, s);
    embed(model, cpu, rows, s);
    for run in rows.chunk_by(|a, b| a.sequence == b.sequence) {
        if caches[run[0].sequence].pack(&cpu.compute) {
            s.clock.lap(Component::Pack);
        }
    }
    for i in 0..layers {
        block(model, cpu, selector, caches, i, rows, s, observer)?;
    }
    observer.see(layers, Point::Residual, &s.x, rows.len());
    for row in rows {
        caches[row.sequence].advance(row);
    }
    Ok(())
}

/// Sizes the working memory for `rows`, and computes what all layers share of their positions.
pub(crate) fn prepare_rows(model: &Model, cpu: &Cpu, rows: &[Row], s: &mut Scratch) {
    s.resize(rows.len());
    cpu.rope_tables(&model.spec, rows, s);
}

/// `s.x` from the embeddings of the rows' tokens, and of their positions where these are learned.
pub(crate) fn embed(model: &Model, cpu: &Cpu, rows: &[Row], s: &mut Scratch) {
    let (spec, weights) = (&model.spec, &model.weights);
    for (row, x) in rows.iter().zip(s.x.chunks_exact_mut(spec.hidden_size)) {
        cpu.embed(&weights.embedding, row.token as usize, spec.embedding_scale, x);
    }
    if let (Positions::Learned { offset }, Some(table)) = (&spec.positions, &weights.positions) {
        for (row, h) in rows.iter().zip(s.h.chunks_exact_mut(spec.hidden_size)) {
            cpu.embed(table, row.position + offset, 1.0, h);
        }
        cpu.compute.add_assign(&mut s.x, &s.h);
    }
    s.clock.lap(Component::Embed);
}

/// One decoder layer: `s.x += attention(norm(s.x))`, then `s.x += mlp(norm(s.x))`, less what `selector` leaves out.
///
/// # Errors
/// If weights cannot be read.
#[allow(clippy::too_many_arguments)]
pub(crate) fn block(
    model: &Model,
    cpu: &Cpu,
    selector: &Selector,
    caches: &mut [KvCache],
    i: usize,
    rows: &[Row],
    s: &mut Scratch,
    observer: &mut dyn Observer,
) -> Result<()> {
    let (spec, layer, m) = (&model.spec, &model.weights.layers[i], rows.len());
    observer.see(i, Point::Residual, &s.x, m);
    if !selector.skipped().is_some_and(|blocks| blocks.attention.contains(&i)) {
        attention(model, cpu, selector, caches, i, rows, s, observer);
    }
    observer.see(i, Point::MiddleResidual, &s.x, m);
    if !selector.skipped().is_some_and(|blocks| blocks.mlp.contains(&i)) {
        cpu.norm_or_copy(&spec.norm, layer.mlp_norm.as_ref(), &s.x, &mut s.h); //         h  [m, hidden]
        s.clock.lap(Component::Norm);
        mlp(spec, cpu, selector, i, &layer.mlp, m, s, observer)?; //                      out [m, hidden]
        if let Some(post_norm) = &layer.mlp_post_norm {
            cpu.norm_in_place(&spec.norm, post_norm, &mut s.out, &mut s.h);
        }
        cpu.compute.add_assign(&mut s.x, &s.out);
        s.clock.lap(Component::Norm);
    }
    if let Some(blocks) = selector.skipped() {
        s.stats.skip(i, m, layer, blocks);
    }
    Ok(())
}

/// `s.x += attention(norm(s.x))`; a selector that looks ahead selects the MLP's neurons here.
#[allow(clippy::too_many_arguments)]
fn attention(
    model: &Model,
    cpu: &Cpu,
    selector: &Selector,
    caches: &mut [KvCache],
    i: usize,
    rows: &[Row],
    s: &mut Scratch,
    observer: &mut dyn Observer,
) {
    use Projection::{K, O, Q, V};
    let (spec, layer, m) = (&model.spec, &model.weights.layers[i], rows.len());
    cpu.norm_or_copy(&spec.norm, layer.attention_norm.as_ref(), &s.x, &mut s.h); //       h  [m, hidden]
    s.clock.lap(Component::Norm);
    observer.see(i, Point::AttentionInput, &s.h, m);
    if selector.looks_ahead() {
        selector.select(spec, cpu, i, &layer.mlp, &s.h, m, false, &mut s.gate, &mut s.selection, &mut s.clock);
        // Attention hides the disk.
        if let Some(cache) = s.cache.as_mut().filter(|_| m <= GATHER_ROWS) {
            cache.prefetch(i, &s.selection);
        }
    }
    let qkv: [(_, _, &mut [f32]); 3] = [(Q, &layer.q, &mut s.q), (K, &layer.k, &mut s.k), (V, &layer.v, &mut s.v)];
    project(cpu, selector, i, &s.h, m, qkv, &mut s.inputs, &mut s.stats); //              q [m, heads·d], k, v [m, kv_heads·d]
    s.clock.lap(Component::Qkv);
    if let Some((q_norm, k_norm)) = &layer.qk_norm {
        cpu.norm_in_place(&spec.norm, q_norm, &mut s.q, &mut s.attended);
        cpu.norm_in_place(&spec.norm, k_norm, &mut s.k, &mut s.attended);
    }
    if let Some(rope) = spec.rope_of(i) {
        let RopeTable { cos, sin, frequencies } = &s.ropes[rope];
        cpu.compute.rope(&mut s.q, spec.num_heads, spec.head_dim, cos, sin, 2 * frequencies.len());
        cpu.compute.rope(&mut s.k, spec.num_kv_heads, spec.head_dim, cos, sin, 2 * frequencies.len());
    }
    let mut done = 0;
    for run in rows.chunk_by(|a, b| a.sequence == b.sequence && a.position + 1 == b.position) {
        let part = done * spec.kv_size()..(done + run.len()) * spec.kv_size();
        caches[run[0].sequence].put(&cpu.compute, i, run[0].position, &s.k[part.clone()], &s.v[part]);
        done += run.len();
    }
    s.clock.lap(Component::Rope);
    cpu.attention(spec, i, rows, caches, &s.q, &mut s.attended); //                       attended [m, heads·d]
    s.clock.lap(Component::Attention);
    let attended = &s.attended[..m * spec.q_size()];
    observer.see(i, Point::Attended, attended, m);
    project(cpu, selector, i, attended, m, [(O, &layer.o, &mut s.h)], &mut s.inputs, &mut s.stats); // h [m, hidden]
    s.clock.lap(Component::Output);
    if let Some(post_norm) = &layer.attention_post_norm {
        cpu.norm_in_place(&spec.norm, post_norm, &mut s.h, &mut s.out);
    }
    cpu.compute.add_assign(&mut s.x, &s.h);
}

/// `logits = head(norm(x))` of row `r` of the last [`forward`], `[vocab]`.
pub(crate) fn logits(model: &Model, cpu: &Cpu, s: &mut Scratch, rows: std::ops::Range<usize>, out: &mut [f32]) {
    let (spec, hidden) = (&model.spec, model.spec.hidden_size);
    let m = rows.len();
    let h = &mut s.h[..m * hidden];
    s.clock.begin_step();
    cpu.norm(&spec.norm, &model.weights.norm, &s.x[rows.start * hidden..rows.end * hidden], h);
    cpu.head(&model.weights.head, h, m, out);
    if let Some(cap) = spec.logits_soft_cap {
        out.iter_mut().for_each(|v| *v = cap * (*v / cap).tanh());
    }
    s.clock.lap(Component::Head);
}
