//! The backend to read: every operation of a layer in f64, one row after another, with the formulas of [`reference`](crate::reference).
//!
//! Nothing is left out that need not be: where neurons are selected, all are computed and the others set to zero. Weights are decoded
//! once, activations live in one `Vec` per row, and the [`Meter`](sparrow::internals::backend::Meter) counts what a machine would
//! have to read, but no time.

mod kv;
mod masks;
mod project;
mod rows;
mod select;
mod weights;

use std::borrow::Cow;
use std::sync::Arc;

use sparrow::internals::backend::{Ahead, Backend, Point, Projection, Row, Scorer, Setup, Step, Threshold};
use sparrow::internals::spec::{ModelSpec, Positions, QkNorm};
use sparrow::internals::weights::{NormWeights, Weights};
use sparrow::{DType, KvOptions, Result};

use crate::reference::{activate, add, dot, gated, norm, rotate, row_of, soft_cap, softmax};
use kv::Cache;
use masks::kept;
use project::{At, project};
use rows::Rows;
use select::Selection;
use weights::{Matrix, Placed};

/// Runs the operations of the forward pass as slowly as they can be understood.
#[derive(Debug)]
pub struct Reference;

/// What operations hand each other.
#[derive(Default)]
pub struct Workspace {
    /// The residual stream, `[m, hidden]`.
    x: Rows,
    /// Queries, `[m, heads · head_dim]`.
    q: Rows,
    /// What attention gathered, `[m, heads · head_dim]`.
    attended: Rows,
}

impl Backend for Reference {
    type Workspace = Workspace;
    type Weights = Placed;
    type Kv = Cache;
    type Selection = Selection;

    fn check(&self) -> Result<()> {
        Ok(())
    }

    fn place(&self, _: &ModelSpec, weights: &Arc<Weights>) -> Result<Placed> {
        Placed::new(weights)
    }

    fn workspace(&self, _: &Setup, _: &Placed) -> Result<Workspace> {
        Ok(Workspace::default())
    }

    fn selection(&self, setup: &Setup) -> Option<Selection> {
        setup.scorer.map(|scorer| Selection { scorer: scorer.clone(), masks: Vec::new() })
    }

    fn kv(&self, spec: &ModelSpec, _: DType, options: &KvOptions, capacity: usize) -> Result<Cache> {
        Ok(Cache::new(spec, options, capacity))
    }

    fn grow_kv(&self, kv: &mut Cache, capacity: usize) -> Result<()> {
        kv.grow(capacity);
        Ok(())
    }

    fn truncate_kv(&self, kv: &mut Cache, len: usize) {
        kv.truncate(len);
    }

    fn copy_kv(&self, from: &Cache, to: &mut Cache, len: usize) {
        to.copy(from, len);
    }

    fn prune_kv(&self, kv: &mut Cache) -> bool {
        kv.prune()
    }

    fn kv_bytes(&self, kv: &Cache) -> usize {
        kv.bytes()
    }

    fn begin(&self, spec: &ModelSpec, step: &Step, w: &mut Workspace) {
        w.x = vec![vec![0.0; spec.hidden_size]; step.rows.len()];
    }

    fn embed(&self, spec: &ModelSpec, weights: &Placed, step: &mut Step, w: &mut Workspace) {
        for (row, x) in step.rows.iter().zip(&mut w.x) {
            *x = row_of(&weights.embedding, row.token as usize);
            x.iter_mut().for_each(|v| *v *= f64::from(spec.embedding_scale));
            if let (Positions::Learned { offset }, Some(table)) = (&spec.positions, &weights.positions) {
                add(x, &row_of(table, row.position + offset));
            }
        }
    }

    fn attention_inputs(
        &self,
        layer: &At,
        step: &mut Step,
        kvs: &mut [Cache],
        ahead: Option<Ahead<Selection>>,
        w: &mut Workspace,
    ) {
        let (stored, matrices) = (&layer.weights.stored.layers[layer.index], &layer.weights.layers[layer.index]);
        let h = normed(layer.spec, stored.attention_norm.as_ref(), &w.x); //                   [m, hidden]
        see(layer, step, Point::AttentionInput, &h);
        if let Some(Ahead { rule, selection }) = ahead {
            selection.find(layer, step, rule, &h);
        }
        let mut q = project(layer, step, Projection::Q, &matrices.q, &h); //                   [m, heads·d]
        let mut k = project(layer, step, Projection::K, &matrices.k, &h); //                   [m, kv_heads·d]
        let v = project(layer, step, Projection::V, &matrices.v, &h); //                       [m, kv_heads·d]
        let (q_norm, k_norm) = stored.qk_norm.as_ref().map(|(q, k)| (q, k)).unzip();
        for (part, weights) in [(&mut q, q_norm), (&mut k, k_norm)] {
            for (heads, row) in part.iter_mut().zip(step.rows) {
                norm_heads(layer.spec, weights, heads);
                rotate_heads(layer, row.position, row.sequence_len, heads);
            }
        }
        for ((row, k), v) in step.rows.iter().zip(k).zip(v) {
            kvs[row.sequence].put(layer.index, row.position, k, v);
        }
        w.q = q;
    }

    fn attend(&self, layer: &At, step: &mut Step, kvs: &[Cache], w: &mut Workspace) {
        let (spec, d) = (layer.spec, layer.spec.head_dim);
        let window = |position: usize| spec.windows[layer.index].map_or(0, |w| (position + 1).saturating_sub(w));
        let of_row = |(row, q): (&Row, &Vec<f64>)| {
            let cache = kvs[row.sequence].layer(layer.index);
            let seen = window(row.position)..row.position + 1;
            let (keys, values) = (&cache.keys[seen.clone()], &cache.values[seen]);
            let of_head = |head: usize| {
                let kv_head = head / (spec.num_heads / spec.num_kv_heads);
                let part = kv_head * d..(kv_head + 1) * d;
                let score = |key: &Vec<f64>| {
                    let score = dot(&q[head * d..(head + 1) * d], &key[part.clone()]);
                    let score = score * f64::from(spec.attention_scale);
                    spec.attention_soft_cap.map_or(score, |cap| soft_cap(score, cap))
                };
                let mut shares: Vec<f64> = keys.iter().map(score).collect();
                softmax(&mut shares);
                let value = |i: usize| shares.iter().zip(values).map(|(share, value)| share * value[i]).sum();
                part.clone().map(value).collect::<Vec<f64>>()
            };
            (0..spec.num_heads).flat_map(of_head).collect()
        };
        w.attended = step.rows.iter().zip(&w.q).map(of_row).collect();
        see(layer, step, Point::Attended, &w.attended);
    }

    fn attention_output(&self, layer: &At, step: &mut Step, w: &mut Workspace) {
        let post_norm = layer.weights.stored.layers[layer.index].attention_post_norm.as_ref();
        let o = &layer.weights.layers[layer.index].o;
        let out = project(layer, step, Projection::O, o, &w.attended); //                      [m, hidden]
        let out = normed(layer.spec, post_norm, &out);
        w.x.iter_mut().zip(&out).for_each(|(x, out)| add(x, out));
    }

    fn select(
        &self,
        layer: &At,
        step: &mut Step,
        rule: Option<Threshold>,
        w: &mut Workspace,
        selection: &mut Selection,
    ) {
        let h = normed(layer.spec, layer.weights.stored.layers[layer.index].mlp_norm.as_ref(), &w.x);
        selection.find(layer, step, rule, &h);
    }

    fn mlp(&self, layer: &At, step: &mut Step, selection: Option<&Selection>, w: &mut Workspace) -> Result<()> {
        let (stored, matrices) = (&layer.weights.stored.layers[layer.index], &layer.weights.layers[layer.index]);
        let h = normed(layer.spec, stored.mlp_norm.as_ref(), &w.x); //                         [m, hidden]
        if step.observer.watches() {
            let bits = selection.map(Selection::bits);
            let active = selection.zip(bits.as_deref()).map(|(selection, bits)| selection.active(bits));
            step.observer.mlp(layer.index, &flat(&h), h.len(), active);
        }
        if let Some(selection) = selection {
            // Rows of the neurons that any of the step's rows needs; the gate's were read to select by.
            let known = matches!(selection.scorer, Scorer::Gate(_)) && stored.mlp.gate.is_some();
            let neuron = stored.mlp.neuron_bytes() - if known { stored.mlp.gate_row_bytes() } else { 0 };
            step.meter.read(neuron * selection.union());
        }
        let times = |step: &mut Step, projection: Projection, matrix: &Matrix, x: &Rows| match selection {
            None => project(layer, step, projection, matrix, x),
            Some(_) => x.iter().map(|x| matrix.times(x)).collect(),
        };
        let activation = layer.spec.activation;
        let gate = matrices.gate.as_ref().map(|gate| times(step, Projection::Gate, gate, &h));
        let mut neurons = times(step, Projection::Up, &matrices.up, &h); //                    [m, intermediate]
        match gate {
            Some(gate) => neurons
                .iter_mut()
                .flatten()
                .zip(gate.iter().flatten())
                .for_each(|(up, &g)| *up = gated(activation, g, *up)),
            None => neurons.iter_mut().flatten().for_each(|up| *up = activate(activation, *up)),
        }
        if let Some(Selection { masks, scorer }) = selection {
            let left_out = scorer.gate_neurons(layer.index).map(|neurons| &neurons.left_out);
            let value = |i: usize| left_out.map_or(0.0, |values| f64::from(values[i]));
            neurons = neurons.iter().zip(masks).map(|(row, mask)| kept(row, mask, value)).collect();
        }
        see(layer, step, Point::Neurons, &neurons);
        let out = times(step, Projection::Down, &matrices.down, &neurons); //                  [m, hidden]
        let out = normed(layer.spec, stored.mlp_post_norm.as_ref(), &out);
        w.x.iter_mut().zip(&out).for_each(|(x, out)| add(x, out));
        Ok(())
    }

    fn head(&self, spec: &ModelSpec, weights: &Placed, rows: &[usize], w: &mut Workspace, logits: &mut [f32]) {
        for (&r, logits) in rows.iter().zip(logits.chunks_exact_mut(spec.vocab_size)) {
            let values = weights.head.times(&norm(&spec.norm, &weights.stored.norm, &w.x[r]));
            for (logit, value) in logits.iter_mut().zip(values) {
                *logit = spec.logits_soft_cap.map_or(value, |cap| soft_cap(value, cap)) as f32;
            }
        }
    }

    fn residual<'a>(&self, w: &'a Workspace) -> Cow<'a, [f32]> {
        Cow::Owned(flat(&w.x))
    }

    fn set_residual(&self, w: &mut Workspace, x: &[f32]) {
        let hidden = x.len() / w.x.len();
        w.x = x.chunks_exact(hidden).map(|row| row.iter().map(|&v| f64::from(v)).collect()).collect();
    }

    fn block_bytes(&self, weights: &Placed, layer: usize) -> [u64; 2] {
        let layer = &weights.stored.layers[layer];
        [layer.attention_bytes(), layer.mlp.bytes()]
    }

    fn parallel(&self, tasks: usize, f: &(dyn Fn(usize) + Sync)) {
        (0..tasks).for_each(f);
    }
}

/// The norm of every row of `x`, or `x` itself where there is none.
fn normed(spec: &ModelSpec, weights: Option<&NormWeights>, x: &Rows) -> Rows {
    weights.map_or(x.clone(), |weights| x.iter().map(|x| norm(&spec.norm, weights, x)).collect())
}

/// Norms a row of queries or keys, `[heads · head_dim]`, each head by itself or all together; not without weights.
fn norm_heads(spec: &ModelSpec, weights: Option<&NormWeights>, heads: &mut [f64]) {
    let width = if spec.qk_norm == QkNorm::Head { spec.head_dim } else { heads.len() };
    if let Some(weights) = weights {
        heads.chunks_exact_mut(width).for_each(|x| x.copy_from_slice(&norm(&spec.norm, weights, x)));
    }
}

/// Rotates a row of queries or keys, `[heads · head_dim]`, where positions enter so.
fn rotate_heads(layer: &At, position: usize, sequence_len: usize, heads: &mut [f64]) {
    let spec = layer.spec;
    if let Positions::Rope { full, windowed } = &spec.positions {
        let rope = windowed.as_ref().filter(|_| spec.windows[layer.index].is_some()).unwrap_or(full);
        heads.chunks_exact_mut(spec.head_dim).for_each(|head| rotate(spec, rope, position, sequence_len, head));
    }
}

/// Shows activations to an observer that watches.
fn see(layer: &At, step: &mut Step, point: Point, values: &Rows) {
    if step.observer.watches() {
        step.observer.see(layer.index, point, &flat(values), values.len());
    }
}

/// All values, row after row.
fn flat(rows: &Rows) -> Vec<f32> {
    rows.iter().flatten().map(|&v| v as f32).collect()
}
