//! The kernels that read weights or caches of one element type.

use sparrow_kernels::{
    Activation, AttentionShape, Compute, DType, DenseKv, Isa, KvRows, KvView, LinearPart, Matrix, SparseMlp,
    SparseMlpInputs, quantize, transpose,
};

use super::case::{Call, Case, Results, Work};
use super::data::{HEAD_DIM, HEADS, HIDDEN, INTERMEDIATE, KV_HEADS, Weights, activations, ids};
use crate::output::percent;

pub const NAMES: [&str; 6] = ["linear", "linear_in_out", "sparse_mlp", "attention", "transpose", "quantize"];

/// The element types of keys and values.
pub const CACHES: [DType; 4] = DType::CACHES;
/// Tokens of a prompt.
const PROMPT: usize = 512;
/// Rows of the prompt's projection on the scalar tier, which is no faster for being given more.
const SCALAR_ROWS: usize = 64;

/// Over weights of 3072 columns.
pub fn cases(weights: &Weights) -> Vec<Case<'_>> {
    let mut cases = Vec::new();
    cases.extend([1, 2, 4, 8].map(|m| linear(weights, m, INTERMEDIATE)));
    // What neither decodes nor is a prompt: batches.
    cases.extend([9, 16, 32, 64].map(|m| on_vectors(linear(weights, m, INTERMEDIATE))));
    cases.push(on_vectors(linear(weights, PROMPT, HIDDEN)));
    cases.push(Case { tier: |isa| isa == Isa::Scalar, ..linear(weights, PROMPT, SCALAR_ROWS) });
    cases.extend([1, 2].map(|of| linear_in_out(weights, 1, of)));
    cases.extend([20, 10, 4, 2, 1].map(|of| sparse_mlp(weights, 1, of)));
    // As batches and prompts do it: what several activations need together.
    cases.extend([8, 64].map(|m| on_vectors(linear_in_out(weights, m, 1))));
    cases.extend([2, 8, 9, 32].map(|m| on_vectors(sparse_mlp(weights, m, 4))));
    if !weights.dtype.is_quantized() {
        cases.extend([transposition(weights), quantization(weights)]);
    }
    cases
}

/// Over keys and values of 128 columns.
pub fn attention_cases(cache: &Weights) -> [Case<'_>; 3] {
    [(1, 8192), (1, 32768), (PROMPT, PROMPT)].map(|(rows, len)| attention(cache, rows, len))
}

fn case<'a>(kernel: &'static str, weights: &Weights, shape: String, work: Work, call: Call<'a>) -> Case<'a> {
    let dtype = weights.dtype.name().to_owned();
    Case { kernel, dtype, shape, work, working_set: weights.bytes().len(), call, expected: None, tier: |_| true }
}

/// What takes too long without vectors.
fn on_vectors(case: Case<'_>) -> Case<'_> {
    Case { tier: |isa| isa > Isa::Scalar, ..case }
}

/// m tokens through [n, 3072].
fn linear(weights: &Weights, m: usize, n: usize) -> Case<'_> {
    let x = activations(m * HIDDEN);
    let project = move |compute: &Compute, x: &[f32], matrix: Matrix, out: &mut Vec<f32>| {
        out.resize(m * matrix.rows(), 0.0);
        compute.linear(x, m, &mut [LinearPart { weights: matrix.into(), bias: None, out }]);
    };
    let work = work(m, n * HIDDEN, n * weights.dtype.row_bytes(HIDDEN), weights.dtype);
    let call = {
        let x = x.clone();
        move |compute: &Compute, i: usize, results: &mut Results| {
            project(compute, &x, weights.matrix(i, n), &mut results.floats);
        }
    };
    // Some outputs of each token: the first, and one in the middle.
    let expected = move |scalar: &Compute| {
        let mut places = Vec::new();
        for j in [0, n / 2 + 1] {
            let mut out = Vec::new();
            project(scalar, &x, weights.matrix(0, n).row_range(j..j + 1), &mut out);
            places.extend(out.into_iter().enumerate().map(|(t, value)| (t * n + j, value)));
        }
        places
    };
    let case = case("linear", weights, format!("m={m} [{n}, {HIDDEN}]"), work, Box::new(call));
    Case { expected: Some(Box::new(expected)), ..case }
}

/// What m activations are bound by that multiply so many weights in so many bytes.
fn work(m: usize, weights: usize, bytes: usize, dtype: DType) -> Work {
    match m {
        1..=8 => Work::Bytes(bytes),
        _ => Work::Operations(2.0 * (m * weights) as f64, dtype),
    }
}

/// m tokens through [8192 in, 3072 out], with one in `of` inputs.
fn linear_in_out(weights: &Weights, m: usize, of: usize) -> Case<'_> {
    let x = activations(m * INTERMEDIATE);
    let sets: Vec<Vec<u32>> = (0..of).map(|set| ids(INTERMEDIATE, of, set)).collect();
    let rows = INTERMEDIATE / of;
    let work = work(m, rows * HIDDEN, rows * weights.dtype.row_bytes(HIDDEN), weights.dtype);
    let shape = format!("m={m} [{INTERMEDIATE}, {HIDDEN}] {} of inputs", percent(1.0 / of as f64));
    let call = move |compute: &Compute, i: usize, results: &mut Results| {
        results.floats.resize(m * HIDDEN, 0.0);
        let inputs = (of > 1).then(|| &sets[i / weights.matrices(INTERMEDIATE) % of][..]);
        compute.linear_in_out(
            &x,
            m,
            inputs,
            &mut [LinearPart { weights: weights.matrix(i, INTERMEDIATE).into(), bias: None, out: &mut results.floats }],
        );
    };
    case("linear_in_out", weights, shape, work, Box::new(call))
}

/// m tokens through a gated MLP of 8192 neurons, the same one in `of` of them active for all.
fn sparse_mlp(weights: &Weights, m: usize, of: usize) -> Case<'_> {
    let x = activations(m * HIDDEN);
    let sets: Vec<Vec<u32>> = (0..of).map(|set| ids(INTERMEDIATE, of, set)).collect();
    let rows = 3 * (INTERMEDIATE / of);
    let work = work(m, rows * HIDDEN, rows * weights.dtype.row_bytes(HIDDEN), weights.dtype);
    let shape = format!("m={m} 3 × [{INTERMEDIATE}, {HIDDEN}] {} active", percent(1.0 / of as f64));
    let call = move |compute: &Compute, i: usize, results: &mut Results| {
        let all = weights.matrix(i, 3 * INTERMEDIATE);
        let [gate, up, down] =
            [0, 1, 2].map(|part| all.row_range(part * INTERMEDIATE..(part + 1) * INTERMEDIATE).into());
        let mlp = SparseMlp {
            gate: Some(gate),
            up,
            down,
            gate_bias: None,
            up_bias: None,
            down_bias: None,
            left_out: None,
            activation: Activation::Silu,
            pooled: None,
        };
        results.floats.resize(m * HIDDEN, 0.0);
        let neurons = &sets[i / weights.matrices(3 * INTERMEDIATE) % of];
        let inputs = SparseMlpInputs { x: &x, rows: m, neurons, masks: None, gate: None };
        compute.sparse_mlp(&mlp, &inputs, &mut results.floats);
    };
    case("sparse_mlp", weights, shape, work, Box::new(call))
}

/// The last `rows` tokens of `len` over a cache of all.
fn attention(weights: &Weights, rows: usize, len: usize) -> Case<'_> {
    let shape = AttentionShape {
        heads: HEADS,
        kv_heads: KV_HEADS,
        head_dim: HEAD_DIM,
        scale: (HEAD_DIM as f32).sqrt().recip(),
        soft_cap: None,
    };
    let width = HEADS * HEAD_DIM;
    let q = activations(rows * width);
    let dtype = weights.dtype;
    let cache = KV_HEADS * len * dtype.row_bytes(HEAD_DIM);
    let attend = move |compute: &Compute, i: usize, q: &[f32], out: &mut Vec<f32>| {
        let (keys, values) = weights.matrix(i, 2 * KV_HEADS * len).bytes().split_at(cache);
        let rows = q.len() / width;
        let view = |row| KvView {
            rows: KvRows::Dense(DenseKv { dtype, keys, values, capacity: len }),
            start: 0,
            len: len - rows + row + 1,
        };
        out.resize(q.len(), 0.0);
        compute.attention(&shape, q, rows, &view, out);
    };
    // Int8 caches are multiplied in bf16, like bf16 ones.
    let products = if dtype == DType::I8 { DType::BF16 } else { dtype };
    let (name, work) = match rows {
        1 => (format!("decode over {len}"), Work::Bytes(2 * cache)),
        // Row r sees len − rows + r + 1 places, and each costs two multiply-adds per element of the heads.
        _ => (format!("prompt of {len}"), Work::Operations((2 * rows * (2 * len - rows + 1) * width) as f64, products)),
    };
    let last = q[(rows - 1) * width..].to_vec();
    let call = move |compute: &Compute, i: usize, results: &mut Results| attend(compute, i, &q, &mut results.floats);
    // The last row sees everything.
    let expected = move |scalar: &Compute| {
        let mut out = Vec::new();
        attend(scalar, 0, &last, &mut out);
        out.into_iter().enumerate().map(|(i, value)| ((rows - 1) * width + i, value)).collect()
    };
    let case = case("attention", weights, name, work, Box::new(call));
    Case { expected: Some(Box::new(expected)), ..case }
}

fn transposition(weights: &Weights) -> Case<'_> {
    let size = INTERMEDIATE * weights.dtype.row_bytes(HIDDEN);
    let call = move |compute: &Compute, i: usize, results: &mut Results| {
        results.bytes.resize(size, 0);
        transpose(compute, weights.matrix(i, INTERMEDIATE), &mut results.bytes);
    };
    let shape = format!("[{INTERMEDIATE}, {HIDDEN}]");
    case("transpose", weights, shape, Work::Bytes(2 * size), Box::new(call))
}

/// To int8.
fn quantization(weights: &Weights) -> Case<'_> {
    const ROWS: usize = 1024;
    let size = ROWS * DType::I8.row_bytes(HIDDEN);
    let call = move |compute: &Compute, i: usize, results: &mut Results| {
        results.bytes.resize(size, 0);
        quantize(compute, weights.matrix(i, ROWS), DType::I8, &mut results.bytes);
    };
    let work = Work::Bytes(size + ROWS * weights.dtype.row_bytes(HIDDEN));
    case("quantize", weights, format!("[{ROWS}, {HIDDEN}] to int8"), work, Box::new(call))
}
