//! A slow, obvious forward pass in f64: every formula is written out here, and nothing of the engine computes.
//! It reads a [`ModelSpec`] and the stored weights, and keeps no cache but the keys and values it has computed.

use half::{bf16, f16};
use sparrow::internals::spec::{ModelSpec, Norm, NormKind, Positions, QkNorm, Rope, RopeScaling};
use sparrow::internals::tensor::{Tensor, Weight};
use sparrow::internals::weights::{Linear, NormWeights};
use sparrow::{DType, Model};
use sparrow_kernels::Activation;

/// Whether neuron `i` of `layer` counts for the token at `position`.
pub type Mask<'a> = &'a dyn Fn(usize, usize, usize) -> bool;

/// Every neuron counts.
pub const ALL: Mask<'static> = &|_, _, _| true;

/// A sparse cache.
#[derive(Clone, Copy)]
pub struct Pruning {
    /// Fractions of keys and of values that are dropped.
    pub sparsity: [f64; 2],
    pub sinks: usize,
    pub tail: usize,
}

impl Pruning {
    pub(crate) const BLOCK: usize = 64;

    /// Positions that are packed when a step begins with so many tokens cached.
    pub(crate) fn packed(&self, cached: usize) -> std::ops::Range<usize> {
        let old = cached.saturating_sub(self.sinks + self.tail);
        self.sinks..self.sinks + old / Self::BLOCK * Self::BLOCK
    }

    /// Every block of rows `[position][heads * d]` without the smallest elements of each head, of equal ones the last.
    pub(crate) fn prune(&self, rows: &[Vec<f64>], d: usize, sparsity: f64) -> Vec<Vec<f64>> {
        let mut pruned = rows.to_vec();
        let dropped = (sparsity * (Self::BLOCK * d) as f64) as usize;
        for block in self.packed(rows.len() + self.tail).step_by(Self::BLOCK) {
            for head in (0..rows[0].len()).step_by(d) {
                let elements = (block..block + Self::BLOCK).flat_map(|p| (head..head + d).map(move |i| (p, i)));
                let mut elements: Vec<(usize, usize)> = elements.collect();
                elements.reverse();
                elements.sort_by(|a, b| rows[a.0][a.1].abs().total_cmp(&rows[b.0][b.1].abs()));
                elements[..dropped].iter().for_each(|&(p, i)| pruned[p][i] = 0.0);
            }
        }
        pruned
    }
}

/// [`logits`] over a sparse cache, a call being a step.
pub fn logits_pruned(model: &Model, tokens: &[u32], calls: &[usize], pruning: Pruning) -> Vec<Vec<f64>> {
    let starts: Vec<usize> = calls
        .iter()
        .scan(0, |at, &call| Some((std::mem::replace(at, *at + call), call)))
        .flat_map(|(start, call)| vec![start; call])
        .collect();
    let ends: Vec<usize> = (1..=tokens.len()).collect();
    logits_at(model, tokens, &ends, ALL, Some((pruning, &starts)))
}

/// Logits after each of `tokens`, a sequence from position 0 that is appended in calls of these sizes. (The sizes matter
/// where frequencies are those of the length that the sequence has after the call. With dynamic RoPE keys stay as they
/// are; LongRoPE computes the whole sequence anew when it crosses the original length.)
pub fn logits(model: &Model, tokens: &[u32], calls: &[usize], mask: Mask) -> Vec<Vec<f64>> {
    let mut ends = Vec::new();
    for &call in calls {
        let end = ends.len() + call;
        ends.extend(vec![end; call]);
    }
    let original = model.spec.ropes().find_map(|rope| match rope.scaling {
        RopeScaling::LongRope { original_max_position_embeddings, .. } => Some(original_max_position_embeddings),
        _ => None,
    });
    let Some(original) = original else { return logits_at(model, tokens, &ends, mask, None) };
    let all_of = |len: usize| logits_at(model, tokens, &vec![len; tokens.len()], mask, None);
    let (short, long) = (all_of(original), all_of(original + 1));
    let chosen = ends.iter().map(|&end| if end > original { &long } else { &short });
    chosen.enumerate().map(|(position, logits)| logits[position].clone()).collect()
}

/// What enters the matrices of a layer: see `inputs`.
pub const ATTENTION: usize = 0;
pub const OUTPUT: usize = 1;
pub const MLP: usize = 2;
pub const DOWN: usize = 3;

/// Hands what enters the matrices of every layer for each of `tokens`, a sequence, to `see(layer, which matrices, values)`.
pub fn inputs(model: &Model, tokens: &[u32], see: &mut dyn FnMut(usize, usize, &[f64])) {
    logits_seen(model, tokens, &vec![tokens.len(); tokens.len()], ALL, None, see);
}

/// Logits where each position's frequencies are those of a sequence of `ends[position]` tokens; over a sparse cache with where
/// each position's step began.
fn logits_at(
    model: &Model,
    tokens: &[u32],
    ends: &[usize],
    mask: Mask,
    pruning: Option<(Pruning, &[usize])>,
) -> Vec<Vec<f64>> {
    logits_seen(model, tokens, ends, mask, pruning, &mut |_, _, _| ())
}

fn logits_seen(
    model: &Model,
    tokens: &[u32],
    ends: &[usize],
    mask: Mask,
    pruning: Option<(Pruning, &[usize])>,
    see: &mut dyn FnMut(usize, usize, &[f64]),
) -> Vec<Vec<f64>> {
    let (spec, w) = (&model.spec, &model.weights);
    let heads_per_kv = spec.num_heads / spec.num_kv_heads;
    let d = spec.head_dim;

    let mut x: Vec<Vec<f64>> = Vec::new();
    for (position, &token) in tokens.iter().enumerate() {
        let mut row = row_of(whole(&w.embedding), token as usize);
        row.iter_mut().for_each(|v| *v *= f64::from(spec.embedding_scale));
        if let Positions::Learned { offset } = spec.positions {
            add(&mut row, &row_of(whole(w.positions.as_ref().unwrap()), position + offset));
        }
        x.push(row);
    }
    for (l, layer) in w.layers.iter().enumerate() {
        let (mut queries, mut keys, mut values) = (Vec::new(), Vec::new(), Vec::new());
        for (position, x) in x.iter().enumerate() {
            let h = layer.attention_norm.as_ref().map_or(x.clone(), |w| norm(&spec.norm, w, x));
            see(l, ATTENTION, &h);
            let (mut q, mut k) = (linear(&layer.q, &h), linear(&layer.k, &h));
            for (part, which) in [(&mut q, 0), (&mut k, 1)] {
                if let Some((q_norm, k_norm)) = &layer.qk_norm {
                    let width = if spec.qk_norm == QkNorm::Head { d } else { part.len() };
                    for normed in part.chunks_exact_mut(width) {
                        normed.copy_from_slice(&norm(&spec.norm, [q_norm, k_norm][which], normed));
                    }
                }
                if let Positions::Rope { full, windowed } = &spec.positions {
                    let rope = windowed.as_ref().filter(|_| spec.windows[l].is_some()).unwrap_or(full);
                    for head in part.chunks_exact_mut(d) {
                        rotate(spec, rope, position, ends[position], head);
                    }
                }
            }
            queries.push(q);
            keys.push(k);
            values.push(linear(&layer.v, &h));
        }
        let pruned = pruning.map(|(pruning, starts)| {
            let [of_keys, of_values] = pruning.sparsity;
            (pruning, starts, pruning.prune(&keys, d, of_keys), pruning.prune(&values, d, of_values))
        });
        for position in 0..x.len() {
            let cached = |p: usize| match &pruned {
                Some((pruning, starts, keys, values)) if pruning.packed(starts[position]).contains(&p) => {
                    (&keys[p], &values[p])
                }
                _ => (&keys[p], &values[p]),
            };
            let first = spec.windows[l].map_or(0, |w| (position + 1).saturating_sub(w));
            let mut attended = Vec::new();
            for head in 0..spec.num_heads {
                let kv = head / heads_per_kv * d..(head / heads_per_kv + 1) * d;
                let q = &queries[position][head * d..(head + 1) * d];
                let seen = first..=position;
                let mut scores: Vec<f64> = seen
                    .clone()
                    .map(|p| {
                        let score = dot(q, &cached(p).0[kv.clone()]) * f64::from(spec.attention_scale);
                        spec.attention_soft_cap.map_or(score, |cap| soft_cap(score, cap))
                    })
                    .collect();
                softmax(&mut scores);
                for i in kv.clone() {
                    attended.push(seen.clone().zip(&scores).map(|(p, s)| s * cached(p).1[i]).sum());
                }
            }
            see(l, OUTPUT, &attended);
            let mut out = linear(&layer.o, &attended);
            if let Some(post_norm) = &layer.attention_post_norm {
                out = norm(&spec.norm, post_norm, &out);
            }
            add(&mut x[position], &out);
        }
        for (position, x) in x.iter_mut().enumerate() {
            let h = layer.mlp_norm.as_ref().map_or(x.clone(), |w| norm(&spec.norm, w, x));
            see(l, MLP, &h);
            let up = linear(&layer.mlp.up, &h);
            let mut neurons: Vec<f64> = match &layer.mlp.gate {
                Some(gate) => linear(gate, &h).iter().zip(&up).map(|(&g, &u)| gated(spec.activation, g, u)).collect(),
                None => up.iter().map(|&u| activate(spec.activation, u)).collect(),
            };
            for (i, neuron) in neurons.iter_mut().enumerate() {
                if !mask(l, position, i) {
                    *neuron = 0.0;
                }
            }
            see(l, DOWN, &neurons);
            let mut out = linear(&layer.mlp.down, &neurons);
            if let Some(post_norm) = &layer.mlp_post_norm {
                out = norm(&spec.norm, post_norm, &out);
            }
            add(x, &out);
        }
    }
    let head = |x: &Vec<f64>| {
        let h = norm(&spec.norm, &w.norm, x);
        let h = as_seen(whole(&w.head), &h);
        let logits = (0..spec.vocab_size).map(|v| dot(&row_of(whole(&w.head), v), &h));
        logits.map(|v| spec.logits_soft_cap.map_or(v, |cap| soft_cap(v, cap))).collect()
    };
    x.iter().map(head).collect()
}

/// All values of a stored matrix, row-major.
pub fn values(tensor: &Tensor) -> Vec<f64> {
    (0..tensor.rows()).flat_map(|row| row_of(tensor, row)).collect()
}

/// One stored row of `cols` values.
fn decode(dtype: DType, bytes: &[u8], cols: usize) -> Vec<f64> {
    match dtype {
        DType::F32 => bytes.as_chunks().0.iter().map(|&b| f64::from(f32::from_le_bytes(b))).collect(),
        DType::F16 => bytes.as_chunks().0.iter().map(|&b| f16::from_le_bytes(b).to_f64()).collect(),
        DType::BF16 => bytes.as_chunks().0.iter().map(|&b| bf16::from_le_bytes(b).to_f64()).collect(),
        DType::I8 => {
            let scale = f64::from(f32::from_le_bytes(bytes[bytes.len() - 4..].try_into().unwrap()));
            bytes[..cols].iter().map(|&b| f64::from(b as i8) * scale).collect()
        }
        DType::I4G32 | DType::I4G32Z | DType::I4G128 | DType::I4G128Z => {
            let group = if matches!(dtype, DType::I4G32 | DType::I4G32Z) { 32 } else { 128 };
            let groups = cols.div_ceil(group);
            let (nibbles, rest) = bytes.split_at(groups * group / 2);
            let (scales, zeros) = rest.split_at(2 * groups);
            let element = |i: usize| {
                let byte = nibbles[i / 32 * 16 + i % 16];
                let nibble = if i % 32 < 16 { byte & 15 } else { byte >> 4 };
                let g = i / group;
                let scale = f16::from_le_bytes([scales[2 * g], scales[2 * g + 1]]).to_f64();
                (f64::from(nibble) - f64::from(zeros.get(g).copied().unwrap_or(8))) * scale
            };
            (0..cols).map(element).collect()
        }
        // Judged by goldens of their own.
        blocks => {
            let mut values = vec![0.0; cols];
            sparrow_kernels::decode(blocks, bytes, &mut values);
            values.into_iter().map(f64::from).collect()
        }
    }
}

/// The reference reads matrices that store every element.
pub fn whole(weight: &Weight) -> &Tensor {
    weight.dense().unwrap()
}

pub(crate) fn row_of(tensor: &Tensor, row: usize) -> Vec<f64> {
    decode(tensor.dtype(), tensor.matrix().row(row), tensor.cols())
}

pub fn dot(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

pub(crate) fn add(x: &mut [f64], y: &[f64]) {
    x.iter_mut().zip(y).for_each(|(x, y)| *x += y);
}

/// W·x + b. Quantised weights see x in 16-bit integers.
pub fn linear(w: &Linear, x: &[f64]) -> Vec<f64> {
    let bias = |i: usize| w.bias.as_ref().map_or(0.0, |b| f64::from(b[i]));
    if w.input_major {
        return input_major(w, x);
    }
    let x = as_seen(whole(&w.weight), x);
    (0..w.weight.rows()).map(|i| dot(&row_of(whole(&w.weight), i), &x) + bias(i)).collect()
}

pub(crate) fn as_seen(w: &Tensor, x: &[f64]) -> Vec<f64> {
    let max = x.iter().fold(0.0f64, |a, v| a.max(v.abs()));
    if !w.dtype().is_quantized() || max == 0.0 {
        return x.to_vec();
    }
    x.iter().map(|v| (v * 32512.0 / max).round_ties_even() * max / 32512.0).collect()
}

/// W·x + b of weights stored `[in, out]`.
fn input_major(w: &Linear, x: &[f64]) -> Vec<f64> {
    let (weights, outputs) = (values(whole(&w.weight)), w.outputs());
    let bias = |o: usize| w.bias.as_ref().map_or(0.0, |b| f64::from(b[o]));
    let term = |o: usize| x.iter().enumerate().map(|(i, v)| weights[i * outputs + o] * v).sum::<f64>();
    (0..outputs).map(|o| bias(o) + term(o)).collect()
}

pub(crate) fn norm(norm: &Norm, w: &NormWeights, x: &[f64]) -> Vec<f64> {
    let n = x.len() as f64;
    let eps = f64::from(norm.eps);
    match norm.kind {
        NormKind::Rms { offset } => {
            let rms = (x.iter().map(|v| v * v).sum::<f64>() / n + eps).sqrt();
            x.iter().zip(&w.weight).map(|(v, &w)| v / rms * (f64::from(offset) + f64::from(w))).collect()
        }
        NormKind::Layer => {
            let mean = x.iter().sum::<f64>() / n;
            let std = (x.iter().map(|v| (v - mean) * (v - mean)).sum::<f64>() / n + eps).sqrt();
            let bias = w.bias.as_ref().expect("a layer norm has a bias");
            let scaled = x.iter().zip(&w.weight).map(|(v, &w)| (v - mean) / std * f64::from(w));
            scaled.zip(bias).map(|(v, &b)| v + f64::from(b)).collect()
        }
    }
}

/// Rotates pairs (i, i + half) of the leading dimensions of a head.
pub(crate) fn rotate(spec: &ModelSpec, rope: &Rope, position: usize, sequence_len: usize, head: &mut [f64]) {
    let half = rope.rotary_dim / 2;
    for i in 0..half {
        let angle = position as f64 * frequency(spec, rope, i, sequence_len);
        let (a, b) = (head[i], head[i + half]);
        let factor = f64::from(rope.attention_factor);
        head[i] = factor * (a * angle.cos() - b * angle.sin());
        head[i + half] = factor * (a * angle.sin() + b * angle.cos());
    }
}

/// Radians per position of pair `i`.
fn frequency(spec: &ModelSpec, rope: &Rope, i: usize, sequence_len: usize) -> f64 {
    let dim = rope.rotary_dim as f64;
    let plain = |theta: f64| 1.0 / theta.powf(2.0 * i as f64 / dim);
    match &rope.scaling {
        RopeScaling::None => plain(rope.theta),
        RopeScaling::Linear { factor } => plain(rope.theta) / factor,
        RopeScaling::Dynamic { factor } => {
            let trained = spec.max_position_embeddings as f64;
            let len = (sequence_len as f64).max(trained);
            plain(rope.theta * (factor * len / trained - (factor - 1.0)).powf(dim / (dim - 2.0)))
        }
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
            // How many times the wave turns within the trained length: few turns stretch, many stay.
            let turns = *original_max_position_embeddings as f64 * plain(rope.theta) / (2.0 * std::f64::consts::PI);
            let kept = ((turns - low_freq_factor) / (high_freq_factor - low_freq_factor)).clamp(0.0, 1.0);
            plain(rope.theta) * (kept + (1.0 - kept) / factor)
        }
        RopeScaling::Yarn { factor, beta_fast, beta_slow, truncate, original_max_position_embeddings } => {
            // The pair whose wave turns so many times within the trained length: theta^(−2·pair/dim)·length/2π = turns.
            let length = *original_max_position_embeddings as f64 / (2.0 * std::f64::consts::PI);
            let pair = |turns: f64| (length / turns).log(rope.theta) * dim / 2.0;
            let round = |x: f64, rounded: f64| if *truncate { rounded } else { x };
            let first = round(pair(*beta_fast), pair(*beta_fast).floor()).max(0.0);
            let last = round(pair(*beta_slow), pair(*beta_slow).ceil()).min(dim - 1.0);
            let kept = 1.0 - ((i as f64 - first) / (last - first)).clamp(0.0, 1.0);
            plain(rope.theta) * (kept + (1.0 - kept) / factor)
        }
        RopeScaling::LongRope { short_factor, long_factor, original_max_position_embeddings } => {
            let factors = if sequence_len > *original_max_position_embeddings { long_factor } else { short_factor };
            plain(rope.theta) / factors[i]
        }
    }
}

pub(crate) fn soft_cap(x: f64, cap: f32) -> f64 {
    f64::from(cap) * (x / f64::from(cap)).tanh()
}

pub(crate) fn softmax(x: &mut [f64]) {
    let max = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    x.iter_mut().for_each(|v| *v = (*v - max).exp());
    let sum: f64 = x.iter().sum();
    x.iter_mut().for_each(|v| *v /= sum);
}

pub fn activate(activation: Activation, x: f64) -> f64 {
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    match activation {
        Activation::Silu => x * sigmoid(x),
        Activation::Relu | Activation::DoubleRelu => x.max(0.0),
        Activation::FatRelu(threshold) => {
            if x <= f64::from(threshold) {
                0.0
            } else {
                x
            }
        }
        Activation::ReluSquared => x.max(0.0).powi(2),
        Activation::Gelu => 0.5 * x * (1.0 + erf(x / 2.0f64.sqrt())),
        Activation::GeluTanh => {
            0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh())
        }
        Activation::GeluSigmoid => x * sigmoid(1.702 * x),
        Activation::Identity => x,
    }
}

/// What the gate of an MLP lets through of `up`.
pub fn gated(activation: Activation, gate: f64, up: f64) -> f64 {
    activate(activation, gate) * if activation == Activation::DoubleRelu { up.max(0.0) } else { up }
}

/// The error function, 2/√π · e^(−x²) · Σ 2ⁿ x^(2n+1) / (2n+1)!! : all terms of one sign, so nothing cancels.
pub fn erf(x: f64) -> f64 {
    if x.abs() > 6.0 {
        return x.signum();
    }
    let (mut term, mut sum, mut n) = (x, x, 0.0);
    while term.abs() > 1e-18 * sum.abs() {
        n += 1.0;
        term *= 2.0 * x * x / (2.0 * n + 1.0);
        sum += term;
    }
    2.0 / std::f64::consts::PI.sqrt() * (-x * x).exp() * sum
}
