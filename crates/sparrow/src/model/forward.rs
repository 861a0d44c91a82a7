//! The one forward pass: prefill and decode, one sequence or many, dense or sparse, every architecture.

use super::kv::KvCache;
use super::mlp::mlp;
use super::spec::Positions;
use super::{Component, Model, Row, Scratch};
use crate::backend::Cpu;
use crate::sparsity::{Observer, Selector};

/// Runs `rows` (tokens with their sequences and positions, `m` of them) through all layers. On return `s.x` holds the
/// final hidden states `[m, hidden]`, before the last norm, and the caches hold the rows' keys and values.
pub(crate) fn forward(
    model: &Model,
    cpu: &Cpu,
    selector: &Selector,
    caches: &mut [KvCache],
    rows: &[Row],
    s: &mut Scratch,
    observer: &mut dyn Observer,
) {
    let (spec, weights, m) = (&model.spec, &model.weights, rows.len());
    s.resize(m);

    for (row, x) in rows.iter().zip(s.x.chunks_exact_mut(spec.hidden_size)) {
        cpu.embed(&weights.embedding, row.token as usize, spec.embedding_scale, x);
    }
    if let (Positions::Learned { offset }, Some(table)) = (&spec.positions, &weights.positions) {
        for (row, h) in rows.iter().zip(s.h.chunks_exact_mut(spec.hidden_size)) {
            cpu.embed(table, row.position + offset, 1.0, h);
        }
        cpu.compute.add_assign(&mut s.x, &s.h);
    }
    cpu.rope_tables(spec, rows, s);
    s.clock.lap(Component::Embed);

    for (i, layer) in weights.layers.iter().enumerate() {
        cpu.norm(&spec.norm, &layer.attention_norm, &s.x, &mut s.h); //                   h  [m, hidden]
        s.clock.lap(Component::Norm);
        cpu.linear(&s.h, m, [(&layer.q, &mut s.q), (&layer.k, &mut s.k), (&layer.v, &mut s.v)]); // q [m, heads·d], k, v [m, kv_heads·d]
        s.clock.lap(Component::Qkv);
        if let Some((q_norm, k_norm)) = &layer.qk_norm {
            cpu.norm_in_place(&spec.norm, q_norm, &mut s.q, &mut s.attended);
            cpu.norm_in_place(&spec.norm, k_norm, &mut s.k, &mut s.attended);
        }
        if let Positions::Rope(rope) = &spec.positions {
            cpu.compute.rope(&mut s.q, spec.num_heads, spec.head_dim, &s.cos, &s.sin, rope.rotary_dim);
            cpu.compute.rope(&mut s.k, spec.num_kv_heads, spec.head_dim, &s.cos, &s.sin, rope.rotary_dim);
        }
        let mut done = 0;
        for run in rows.chunk_by(|a, b| a.sequence == b.sequence && a.position + 1 == b.position) {
            let part = done * spec.kv_size()..(done + run.len()) * spec.kv_size();
            caches[run[0].sequence].put(&cpu.compute, i, run[0].position, &s.k[part.clone()], &s.v[part]);
            done += run.len();
        }
        s.clock.lap(Component::Rope);
        cpu.attention(spec, i, rows, caches, &s.q, &mut s.attended); //                   attended [m, heads·d]
        s.clock.lap(Component::Attention);
        cpu.linear(&s.attended, m, [(&layer.o, &mut s.h)]); //                            h  [m, hidden]
        s.clock.lap(Component::Output);
        if let Some(post_norm) = &layer.attention_post_norm {
            cpu.norm_in_place(&spec.norm, post_norm, &mut s.h, &mut s.out);
        }
        cpu.compute.add_assign(&mut s.x, &s.h);

        cpu.norm(&spec.norm, &layer.mlp_norm, &s.x, &mut s.h); //                         h  [m, hidden]
        s.clock.lap(Component::Norm);
        mlp(spec, cpu, selector, i, &layer.mlp, m, s, observer); //                       out [m, hidden]
        if let Some(post_norm) = &layer.mlp_post_norm {
            cpu.norm_in_place(&spec.norm, post_norm, &mut s.out, &mut s.h);
        }
        cpu.compute.add_assign(&mut s.x, &s.out);
        s.clock.lap(Component::Norm);
    }
    for row in rows {
        caches[row.sequence].advance(1);
    }
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
