//! The forward pass's operations on the CPU: roles and weights in, kernels called.

use std::sync::Mutex;

use sparrow_kernels::{AttentionShape, Compute, LinearPart};

use crate::checkpoint::Weight;
use crate::model::kv::KvCache;
use crate::model::spec::{ModelSpec, Norm, NormKind};
use crate::model::weights::{Linear, NormWeights};
use crate::model::{RopeTable, Row, Scratch};

/// Runs the coarse operations of the forward pass on this machine's cores.
pub struct Cpu {
    /// Kernels, thread pool and scratch memory.
    pub compute: Compute,
}

impl std::fmt::Debug for Cpu {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Cpu({}, {} threads)", self.compute.isa(), self.compute.threads())
    }
}

impl Cpu {
    /// The best kernels of this CPU (capped by `SPARROW_ISA`), on `threads` threads or as many as there are cores to use.
    pub fn new(threads: Option<usize>) -> Self {
        Cpu { compute: Compute::new(threads) }
    }

    /// Calls `f` with the number of each chunk of `size` values (the last may be shorter) and the chunk, on all threads.
    ///
    /// # Panics
    /// If `size` is 0.
    pub(crate) fn for_chunks<T: Send>(&self, values: &mut [T], size: usize, f: &(dyn Fn(usize, &mut [T]) + Sync)) {
        let chunks = values.len().div_ceil(size);
        let next = Mutex::new(values.chunks_mut(size).enumerate());
        self.compute.pool().run(chunks, &|_| {
            let chunk = next.lock().expect("no panic while held").next();
            let (i, chunk) = chunk.expect("a task for each chunk");
            f(i, chunk);
        });
    }

    /// Row `id` of an embedding table, times `scale`.
    pub(crate) fn embed(&self, table: &Weight, id: usize, scale: f32, out: &mut [f32]) {
        table.decode(id..id + 1, out);
        if scale != 1.0 {
            out.iter_mut().for_each(|v| *v *= scale);
        }
    }

    /// `out = norm(x)`, row by row.
    pub(crate) fn norm(&self, norm: &Norm, weights: &NormWeights, x: &[f32], out: &mut [f32]) {
        match norm.kind {
            NormKind::Rms { offset } => self.compute.rms_norm(x, &weights.weight, offset, norm.eps, out),
            NormKind::Layer => self.compute.layer_norm(x, &weights.weight, weights.bias.as_deref(), norm.eps, out),
        }
    }

    /// `out = norm(x)`, or `x` itself where there is no norm.
    pub(crate) fn norm_or_copy(&self, norm: &Norm, weights: Option<&NormWeights>, x: &[f32], out: &mut [f32]) {
        match weights {
            Some(weights) => self.norm(norm, weights, x, out),
            None => out.copy_from_slice(x),
        }
    }

    /// `x = norm(x)`; `spare` is overwritten.
    pub(crate) fn norm_in_place(&self, norm: &Norm, weights: &NormWeights, x: &mut [f32], spare: &mut [f32]) {
        let spare = &mut spare[..x.len()];
        spare.copy_from_slice(x);
        self.norm(norm, weights, spare, x);
    }

    /// `out = x·Wᵀ + b` for several layers that share `x`, `[m, in]`: in one parallel region, unless they are input-major.
    pub(crate) fn linear<const N: usize>(&self, x: &[f32], m: usize, layers: [(&Linear, &mut [f32]); N]) {
        if layers.iter().any(|(layer, _)| layer.input_major) {
            for (layer, out) in layers {
                self.compute.linear_in_out(x, m, layer.weight.stored(), None, layer.bias.as_deref(), out);
            }
            return;
        }
        let mut parts =
            layers.map(|(layer, out)| LinearPart { weights: layer.weight.stored(), bias: layer.bias.as_deref(), out });
        self.compute.linear(x, m, &mut parts);
    }

    /// Logits of `m` normed hidden states, `[m, vocab]`.
    pub(crate) fn head(&self, weight: &Weight, h: &[f32], m: usize, out: &mut [f32]) {
        self.compute.linear(h, m, &mut [LinearPart { weights: weight.stored(), bias: None, out }]);
    }

    /// `softmax(q·Kᵀ)·V` of each row over its sequence's cache.
    pub(crate) fn attention(
        &self,
        spec: &ModelSpec,
        layer: usize,
        rows: &[Row],
        caches: &[KvCache],
        q: &[f32],
        out: &mut [f32],
    ) {
        let shape = AttentionShape {
            heads: spec.num_heads,
            kv_heads: spec.num_kv_heads,
            head_dim: spec.head_dim,
            scale: spec.attention_scale,
            soft_cap: spec.attention_soft_cap,
        };
        let view = |r: usize| caches[rows[r].sequence].view(layer, rows[r].position, spec.windows[layer]);
        self.compute.attention(&shape, q, rows.len(), &view, out);
    }

    /// Cosines and sines of every row's position, `[rows, rotary_dim / 2]`, for each of the model's ropes.
    pub(crate) fn rope_tables(&self, spec: &ModelSpec, rows: &[Row], s: &mut Scratch) {
        for (rope, RopeTable { cos, sin, frequencies }) in spec.ropes().zip(&mut s.ropes) {
            let half = frequencies.len();
            for (r, row) in rows.iter().enumerate() {
                if rope.is_dynamic() || r == 0 {
                    rope.frequencies(row.sequence_len, spec.max_position_embeddings, frequencies);
                }
                for (i, f) in frequencies.iter().enumerate() {
                    // The angle is rounded to f32 before the cosine, as in the reference implementation.
                    let (sine, cosine) = (row.position as f32 * f).sin_cos();
                    (sin[r * half + i], cos[r * half + i]) =
                        (sine * rope.attention_factor, cosine * rope.attention_factor);
                }
            }
        }
    }
}
