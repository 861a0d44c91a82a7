//! The attention block: what enters it, attention itself, and what it adds to the residual stream.

use sparrow_kernels::AttentionShape;

use super::buffers::{Attention, RopeTable};
use super::kv::KvCache;
use super::machine::{At, Cpu, GATHER_ROWS};
use super::select::{Given, Selection};
use super::workspace::Workspace;
use crate::backend::{Ahead, Component, Point, Projection, Step};
use crate::spec::ModelSpec;

/// Norm, queries, keys and values, rotated and stored; neurons selected ahead, whose reading attention then hides.
pub fn inputs(
    cpu: &Cpu,
    layer: &At,
    step: &mut Step,
    kvs: &mut [KvCache],
    ahead: Option<Ahead<Selection>>,
    w: &mut Workspace,
) {
    use Projection::{K, Q, V};
    let (spec, weights, m) = (layer.spec, &layer.weights.layers[layer.index], step.rows.len());
    let Workspace { stream: s, attention: a, mlp, inputs, pools } = w;
    cpu.norm_or_copy(&spec.norm, weights.attention_norm.as_ref(), &s.x, &mut s.h); //     h  [m, hidden]
    step.meter.lap(Component::Norm);
    step.observer.see(layer.index, Point::AttentionInput, &s.h, m);
    if let Some(Ahead { rule, selection }) = ahead {
        let preferred = pools.as_ref().and_then(|pools| pools.preferred(layer.index));
        selection.find(cpu, layer, step, rule, &Given { h: &s.h, mlp, preferred });
        if let Some(pools) = pools.as_mut().filter(|_| m <= GATHER_ROWS) {
            pools.prefetch(layer.index, selection);
        }
    }
    let qkv: [(_, _, &mut [f32]); 3] =
        [(Q, weights.q.view(), &mut a.q), (K, weights.k.view(), &mut a.k), (V, weights.v.view(), &mut a.v)];
    cpu.project(layer, step, &s.h, qkv, inputs); //                                       q [m, heads·d], k, v [m, kv_heads·d]
    step.meter.lap(Component::Qkv);
    if let Some((q_norm, k_norm)) = &weights.qk_norm {
        cpu.norm_in_place(&spec.norm, q_norm, &mut a.q, &mut a.attended);
        cpu.norm_in_place(&spec.norm, k_norm, &mut a.k, &mut a.attended);
    }
    if let Some(rope) = spec.rope_of(layer.index) {
        let RopeTable { cos, sin, frequencies } = &a.ropes[rope];
        cpu.compute.rope(&mut a.q, spec.num_heads, spec.head_dim, cos, sin, 2 * frequencies.len());
        cpu.compute.rope(&mut a.k, spec.num_kv_heads, spec.head_dim, cos, sin, 2 * frequencies.len());
    }
    let sizes = kvs[step.rows[0].sequence].wants_even_keys().then(|| {
        let rotary = spec.rope_of(layer.index).map_or(0, |rope| 2 * a.ropes[rope].frequencies.len());
        weights.key_sizes(spec.head_dim, rotary)
    });
    if let Some(sizes) = sizes {
        even_keys(spec, sizes, &mut a.q, &mut a.k);
    }
    let mut done = 0;
    for run in step.rows.chunk_by(|a, b| a.sequence == b.sequence && a.position + 1 == b.position) {
        let part = done * spec.kv_size()..(done + run.len()) * spec.kv_size();
        kvs[run[0].sequence].put(&cpu.compute, layer.index, run[0].position, [&a.k[part.clone()], &a.v[part]], sizes);
        done += run.len();
    }
    step.meter.lap(Component::Rope);
}

/// Divides keys by their sizes and multiplies queries by them, which leaves their products as they are (after SmoothAttention of QServe,
/// arXiv 2405.04532).
fn even_keys(spec: &ModelSpec, sizes: &[f32], q: &mut [f32], k: &mut [f32]) {
    let (d, group) = (spec.head_dim, spec.num_heads / spec.num_kv_heads);
    for row in k.chunks_exact_mut(spec.kv_size()) {
        row.iter_mut().zip(sizes).for_each(|(k, size)| *k /= size);
    }
    for row in q.chunks_exact_mut(spec.q_size()) {
        for (head, q) in row.chunks_exact_mut(d).enumerate() {
            q.iter_mut().zip(&sizes[head / group * d..]).for_each(|(q, size)| *q *= size);
        }
    }
}

/// `softmax(q·Kᵀ)·V` of each row over its sequence's cache.
pub fn attend(cpu: &Cpu, layer: &At, step: &mut Step, kvs: &[KvCache], a: &mut Attention) {
    let (spec, index, rows) = (layer.spec, layer.index, step.rows);
    let shape = AttentionShape {
        heads: spec.num_heads,
        kv_heads: spec.num_kv_heads,
        head_dim: spec.head_dim,
        scale: spec.attention_scale,
        soft_cap: spec.attention_soft_cap,
    };
    let view = |r: usize| kvs[rows[r].sequence].view(index, rows[r].position, spec.windows[index]);
    cpu.compute.attention(&shape, &a.q, rows.len(), &view, &mut a.attended); //           attended [m, heads·d]
    step.meter.lap(Component::Attention);
    step.observer.see(index, Point::Attended, &a.attended[..rows.len() * spec.q_size()], rows.len());
}

/// `x += o(attended)`.
pub fn output(cpu: &Cpu, layer: &At, step: &mut Step, w: &mut Workspace) {
    let (spec, weights, m) = (layer.spec, &layer.weights.layers[layer.index], step.rows.len());
    let Workspace { stream: s, attention: a, inputs, .. } = w;
    let attended = &a.attended[..m * spec.q_size()];
    cpu.project(layer, step, attended, [(Projection::O, weights.o.view(), &mut s.h)], inputs); // h [m, hidden]
    step.meter.lap(Component::Output);
    if let Some(post_norm) = &weights.attention_post_norm {
        cpu.norm_in_place(&spec.norm, post_norm, &mut s.h, &mut s.out);
    }
    cpu.compute.add_assign(&mut s.x, &s.h);
}
