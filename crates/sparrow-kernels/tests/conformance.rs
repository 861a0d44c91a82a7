//! Every available tier against the scalar one, and the scalar one against `f64`: all element types, sizes around every
//! block edge, weights at odd addresses, NaN and infinity.
//!
//! Tolerances are those that the operations document. A tier that the CPU lacks prints `skipped: needs <tier>`;
//! `SPARROW_REQUIRE_ISA=<tier>` turns that into a failure.

// References index several arrays by the same number.
#![allow(clippy::needless_range_loop)]

mod common;

use common::*;
use proptest::prelude::*;
use sparrow_kernels::*;

/// The activations that a product with weights of `dtype` sees: for int8 weights `[out, in]` they are quantised row by row;
/// beyond 8 of them, the AMX tier rounds x to bf16 for bf16 and int4 weights. The reference sees the same.
fn as_seen(compute: &Compute, dtype: DType, m: usize, x: &[f32]) -> Vec<f32> {
    if dtype == DType::I8 {
        return x.chunks((x.len() / m.max(1)).max(1)).flat_map(quantized).collect();
    }
    if m <= 8 || matches!(dtype, DType::F32 | DType::F16) || compute.isa() < Isa::Amx {
        return x.to_vec();
    }
    let mut bytes = vec![0; 2 * x.len()];
    encode(DType::BF16, x, &mut bytes);
    let mut rounded = vec![0.0; x.len()];
    decode(DType::BF16, &bytes, &mut rounded);
    rounded
}

/// A row of activations as int8 products see it.
fn quantized(x: &[f32]) -> Vec<f32> {
    let max = x.iter().fold(0.0f32, |a, v| a.max(v.abs()));
    let (inverse, scale) = (127.0 / max, max / 127.0);
    x.iter().map(|v| if max == 0.0 { 0.0 } else { (v * inverse).round_ties_even() * scale }).collect()
}

fn check_linear(compute: &Compute, dtype: DType, m: usize, n: usize, k: usize, random: &mut Random) {
    let (w, v) = (Sample::random(dtype, n, k, random), Sample::random(dtype, n / 2, k, random));
    let (x, bias) = (random.values(m * k), random.values(n));
    let (mut out, mut second) = (vec![f32::NAN; m * n], vec![f32::NAN; m * (n / 2)]);
    compute.linear(
        &x,
        m,
        &mut [
            LinearPart { weights: w.matrix().into(), bias: Some(&bias), out: &mut out },
            LinearPart { weights: v.matrix().into(), bias: None, out: &mut second },
        ],
    );
    let seen = as_seen(compute, dtype, m, &x);
    let steps = if m > 8 { k as f64 } else { k as f64 / 8.0 };
    for (w, out, bias) in [(&w, &out, Some(&bias)), (&v, &second, None)] {
        for t in 0..m {
            for j in 0..w.rows {
                let b = bias.map_or(0.0, |b| f64::from(b[j]));
                let (mut want, mut size) = (b, b.abs());
                for i in 0..k {
                    let product = w.at(j, i) * f64::from(seen[t * k + i]);
                    want += product;
                    size += product.abs();
                }
                let tolerance = (steps + 16.0) * U * size + weights_rounded(compute, dtype, m) * size;
                assert_close(out[t * w.rows + j], want, tolerance, &|| {
                    format!("linear {dtype} m={m} n={n} k={k} [{t}, {j}] {}", describe(compute))
                });
            }
        }
    }
    let mut alone = vec![f32::NAN; m * n];
    compute.linear(&x, m, &mut [LinearPart { weights: w.matrix().into(), bias: Some(&bias), out: &mut alone }]);
    assert_eq!(alone, out, "one part and two differ");
}

#[test]
fn linear() {
    let mut random = Random(1);
    for compute in tiers_to_test() {
        for dtype in DType::ALL {
            for k in EDGES {
                for n in [0, 1, 3, 8, 13] {
                    for m in [0, 1, 2, 3, 5] {
                        check_linear(&compute, dtype, m, n, k, &mut random);
                    }
                }
            }
            for n in EDGES {
                check_linear(&compute, dtype, 2, n, 19, &mut random);
            }
            for m in [4, 6, 7, 8, 9, 10, 11, 12, 13, 17, 33] {
                check_linear(&compute, dtype, m, 21, 65, &mut random);
            }
            check_linear(&compute, dtype, 29, 67, 2063, &mut random);
            check_linear(&compute, dtype, 1, 1031, 1029, &mut random);
            // Around the edges of strips, panels, blocks of k and tasks of the blocked product.
            for k in [1, 2, 31, 32, 33, 255, 256, 257, 513] {
                check_linear(&compute, dtype, 9, 33, k, &mut random);
            }
            for n in [1, 15, 16, 17, 31, 32, 47, 48, 49, 95, 97] {
                check_linear(&compute, dtype, 17, n, 37, &mut random);
            }
            for m in [15, 16, 31, 32, 34, 64, 65] {
                check_linear(&compute, dtype, m, 50, 70, &mut random);
            }
            check_linear(&compute, dtype, 517, 70, 35, &mut random);
            check_linear(&compute, dtype, 40, 900, 300, &mut random);
        }
    }
}

/// The relative error of weights that a product rounds: the AMX tier rounds int4 ones to bf16 beyond 8 activations.
fn weights_rounded(compute: &Compute, dtype: DType, m: usize) -> f64 {
    let int4 = dtype.is_quantized() && dtype != DType::I8;
    if int4 && m > 8 && compute.isa() >= Isa::Amx { 2f64.powi(-8) } else { 0.0 }
}

/// x as products with int8 weights `[in, out]` see it beyond 8 activations with AMX: times the scale of the input, the `used`
/// ones quantised row by row.
fn scaled_and_quantized(w: &Sample, x: &[f32], used: &[u32]) -> Vec<f32> {
    let scale = |i: usize| f32::from_le_bytes(w.matrix().row(i)[w.matrix().row_bytes() - 4..].try_into().unwrap());
    let mut seen = x.to_vec();
    for row in seen.chunks_mut(w.rows.max(1)) {
        let scaled: Vec<f32> = used.iter().map(|&i| row[i as usize] * scale(i as usize)).collect();
        for (&i, value) in used.iter().zip(quantized(&scaled)) {
            row[i as usize] = if scale(i as usize) == 0.0 { 0.0 } else { value / scale(i as usize) };
        }
    }
    seen
}

fn check_in_out(compute: &Compute, dtype: DType, m: usize, k: usize, n: usize, sparse: bool, random: &mut Random) {
    let w = Sample::random(dtype, k, n, random);
    let (x, bias) = (random.values(m * k), random.values(n));
    let ids: Vec<u32> = (0..k as u32).filter(|_| random.below(3) == 0).collect();
    let inputs = sparse.then_some(&ids[..]);
    let mut out = vec![f32::NAN; m * n];
    compute.linear_in_out(&x, m, w.matrix(), inputs, Some(&bias), &mut out);
    let all: Vec<u32> = (0..k as u32).collect();
    let used = inputs.unwrap_or(&all);
    let seen = match dtype {
        DType::I8 if m > 8 && compute.isa() >= Isa::Amx => scaled_and_quantized(&w, &x, used),
        DType::I8 => x.clone(),
        _ => as_seen(compute, dtype, m, &x),
    };
    for t in 0..m {
        for j in 0..n {
            let (mut want, mut size) = (f64::from(bias[j]), f64::from(bias[j]).abs());
            for &i in used {
                let product = w.at(i as usize, j) * f64::from(seen[t * k + i as usize]);
                want += product;
                size += product.abs();
            }
            let tolerance = ((used.len() + 2) as f64 * U + weights_rounded(compute, dtype, m)) * size;
            assert_close(out[t * n + j], want, tolerance, &|| {
                format!("linear_in_out {dtype} m={m} k={k} n={n} [{t}, {j}] {}", describe(compute))
            });
        }
    }
    if inputs.is_none() && !dtype.is_quantized() {
        let mut transposed = vec![0; w.matrix().bytes().len()];
        transpose(compute, w.matrix(), &mut transposed);
        let mut by_rows = vec![f32::NAN; m * n];
        let weights = Matrix::new(dtype, n, k, &transposed);
        compute.linear(&x, m, &mut [LinearPart { weights: weights.into(), bias: Some(&bias), out: &mut by_rows }]);
        for (a, b) in out.iter().zip(&by_rows) {
            assert!((a - b).abs() <= (k as f32 + 2.0) * 2e-7 * (k as f32 + 1.0), "transposed {a} {b}");
        }
    }
}

#[test]
fn linear_in_out() {
    let mut random = Random(2);
    for compute in tiers_to_test() {
        for dtype in DType::ALL {
            for sparse in [false, true] {
                for n in EDGES {
                    for k in [0, 1, 7, 8, 9, 40] {
                        for m in [0, 1, 3] {
                            check_in_out(&compute, dtype, m, k, n, sparse, &mut random);
                        }
                    }
                }
                for m in [7, 8, 9, 17, 31, 32, 33] {
                    check_in_out(&compute, dtype, m, 65, 33, sparse, &mut random);
                }
                for k in [1, 2, 31, 32, 33, 257, 800] {
                    check_in_out(&compute, dtype, 10, k, 51, sparse, &mut random);
                }
                for n in EDGES {
                    check_in_out(&compute, dtype, 19, 45, n, sparse, &mut random);
                }
                check_in_out(&compute, dtype, 515, 35, 70, sparse, &mut random);
                for (m, k, n) in
                    [(2, 301, 2600), (1, 900, 33), (8, 1000, 70), (7, 200, 250), (3, 150, 181), (1, 5003, 17)]
                {
                    check_in_out(&compute, dtype, m, k, n, sparse, &mut random);
                }
            }
        }
    }
}

/// The reference of an activation in `f64`, and its tolerance.
fn activation(a: Activation, x: f64) -> f64 {
    let logistic = |v: f64| 1.0 / (1.0 + (-v).exp());
    match a {
        Activation::Silu => x * logistic(x),
        Activation::Relu => relu(x),
        Activation::ReluSquared => relu(x).powi(2),
        Activation::Gelu => 0.5 * x * (1.0 + erf(x / 2f64.sqrt())),
        Activation::GeluTanh => {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
            0.5 * x * (1.0 + inner.tanh())
        }
        Activation::GeluSigmoid => x * logistic(1.702 * x),
        Activation::Identity => x,
    }
}

/// max(x, 0) that keeps NaN, unlike `f64::max`.
fn relu(x: f64) -> f64 {
    if x < 0.0 { 0.0 } else { x }
}

/// erf by its Taylor series; beyond 5 it is ±1 to `f32` precision.
fn erf(x: f64) -> f64 {
    if x.abs() > 5.0 {
        return x.signum();
    }
    let (mut term, mut sum) = (x, x);
    for n in 1..400 {
        term *= -x * x / f64::from(n);
        sum += term / f64::from(2 * n + 1);
    }
    sum * 2.0 / std::f64::consts::PI.sqrt()
}

#[test]
fn activations() {
    let grid: Vec<f32> = (-4000..4000).map(|i| i as f32 * 0.011).collect();
    let special = [0.0, f32::NAN, f32::INFINITY, 1e-30, -1e-30, 80.0, -80.0, 1e4, -1e4];
    for compute in tiers_to_test() {
        for a in Activation::ALL {
            for n in EDGES.into_iter().chain([8000]) {
                let x: Vec<f32> = special.iter().chain(&grid).copied().take(n).collect();
                let up: Vec<f32> = x.iter().rev().map(|v| v * 0.5).collect();
                let mut got = x.clone();
                compute.activate(a, &mut got);
                let mut gated = vec![f32::NAN; x.len()];
                compute.gated(a, &x, &up, &mut gated);
                for i in 0..x.len() {
                    let want = activation(a, f64::from(x[i]));
                    let size = if a == Activation::ReluSquared { x[i] * x[i] } else { x[i].abs() };
                    let tolerance = f64::from(size) * 8.0 * U + 1e-37;
                    let context = || format!("{a:?}({}) {}", x[i], describe(&compute));
                    assert_close(got[i], want, tolerance, &context);
                    assert_close(a.apply(x[i]), want, tolerance, &context);
                    assert!(gated[i] == got[i] * up[i] || (got[i] * up[i]).is_nan() && gated[i].is_nan());
                }
            }
            // An infinity gives the same as the scalar tier.
            let mut x = [f32::NEG_INFINITY; 40];
            compute.activate(a, &mut x);
            let want = a.apply(f32::NEG_INFINITY);
            assert!(x.iter().all(|v| *v == want || v.is_nan() && want.is_nan()), "{a:?}(-inf) {x:?}");
        }
    }
}

struct Mlp {
    gate: Option<Sample>,
    up: Sample,
    down: Sample,
    biases: Option<[Vec<f32>; 3]>,
    activation: Activation,
}

impl Mlp {
    fn random(dtype: DType, neurons: usize, hidden: usize, gated: bool, a: Activation, random: &mut Random) -> Self {
        Self {
            gate: gated.then(|| Sample::random(dtype, neurons, hidden, random)),
            up: Sample::random(dtype, neurons, hidden, random),
            down: Sample::random(dtype, neurons, hidden, random),
            biases: (neurons % 2 == 1).then(|| [random.values(neurons), random.values(neurons), random.values(hidden)]),
            activation: a,
        }
    }

    fn borrow(&self) -> SparseMlp<'_> {
        let bias = |i: usize| self.biases.as_ref().map(|b| &b[i][..]);
        SparseMlp {
            gate: self.gate.as_ref().map(|gate| gate.matrix().into()),
            up: self.up.matrix().into(),
            down: self.down.matrix().into(),
            gate_bias: bias(0),
            up_bias: bias(1),
            down_bias: bias(2),
            activation: self.activation,
            packed: None,
        }
    }

    /// The masked dense reference for one row, with the sum of absolute values.
    fn reference(&self, x: &[f32], active: &dyn Fn(usize) -> bool) -> Vec<(f64, f64)> {
        let bias = |which: usize, i: usize| self.biases.as_ref().map_or(0.0, |b| f64::from(b[which][i]));
        let seen = if self.up.dtype == DType::I8 { quantized(x) } else { x.to_vec() };
        let project = |w: &Sample, which: usize, i: usize| {
            let (mut sum, mut size) = (bias(which, i), bias(which, i).abs());
            for (c, &v) in seen.iter().enumerate() {
                let product = w.at(i, c) * f64::from(v);
                sum += product;
                size += product.abs();
            }
            (sum, size)
        };
        let mut out: Vec<(f64, f64)> = (0..x.len()).map(|c| (bias(2, c), bias(2, c).abs())).collect();
        for i in (0..self.up.rows).filter(|&i| active(i)) {
            let (up, up_size) = project(&self.up, 1, i);
            let (h, size) = match &self.gate {
                Some(gate) => {
                    let (gate, gate_size) = project(gate, 0, i);
                    (activation(self.activation, gate) * up, (gate_size + gate_size * gate_size) * up_size)
                }
                None => (activation(self.activation, up), up_size + up_size * up_size),
            };
            for (c, (sum, sizes)) in out.iter_mut().enumerate() {
                *sum += h * self.down.at(i, c);
                *sizes += size * self.down.at(i, c).abs();
            }
        }
        out
    }
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

/// The rows of some neurons of an [`Mlp`], in records of gate, up and down whose order is not that of the neurons.
struct Pooled {
    bytes: Vec<u8>,
    stride: usize,
    rows: Vec<u32>,
}

impl Pooled {
    fn new(mlp: &Mlp, ids: &[u32]) -> Self {
        let row = mlp.up.matrix().row_bytes();
        let (count, stride) = (ids.len(), (3 * row).next_multiple_of(64));
        // Some record between those in use: the pool's matrices have more rows than there are ids.
        let rows: Vec<u32> = (0..count).map(|j| (count - j) as u32).collect();
        let mut bytes = vec![0xff; (count + 1) * stride];
        for (&id, &at) in ids.iter().zip(&rows) {
            let parts = [mlp.gate.as_ref().unwrap_or(&mlp.up), &mlp.up, &mlp.down];
            for (p, part) in parts.into_iter().enumerate() {
                bytes[at as usize * stride + p * row..][..row].copy_from_slice(part.matrix().row(id as usize));
            }
        }
        Pooled { bytes, stride, rows }
    }

    fn borrow<'a>(&'a self, mlp: &'a Mlp, gate_read: bool) -> SparseMlp<'a> {
        let stored = mlp.up.matrix();
        let part = |p: usize| {
            let (count, bytes) = (self.rows.len() + 1, &self.bytes[p * stored.row_bytes()..]);
            Matrix::strided(stored.dtype(), count, stored.cols(), self.stride, bytes).into()
        };
        let whole = mlp.borrow();
        // A gate that is not read may be of any shape.
        let gate = whole.gate.map(|gate| if gate_read { part(0) } else { gate });
        let packed = Some(Packed { neurons: stored.rows(), rows: &self.rows });
        SparseMlp { gate, up: part(1), down: part(2), packed, ..whole }
    }
}

fn set_bit(mask: &mut [u64], i: usize) {
    mask[i / 64] |= 1 << (i % 64);
}

fn check_sparse_mlp(compute: &Compute, mlp: &Mlp, m: usize, every: usize, random: &mut Random) {
    let (neurons, hidden) = (mlp.up.rows, mlp.up.cols);
    let words = mask_words(neurons);
    let x = random.values(m * hidden);
    let mut masks = vec![0u64; m * words];
    for t in 0..m {
        for i in 0..neurons {
            if random.below(every) == 0 {
                set_bit(&mut masks[t * words..(t + 1) * words], i);
            }
        }
    }
    let mut union = vec![0; words];
    union_masks(&masks, words, &mut union);
    let mut ids = Vec::new();
    compute.mask_to_ids(&union, &mut ids);
    let gate_values = mlp.borrow().gate.map(|weights| {
        let mut values = vec![0.0; m * neurons];
        compute.linear(&x, m, &mut [LinearPart { weights, bias: mlp.borrow().gate_bias, out: &mut values }]);
        values
    });
    for masked in [false, true] {
        for gate_values in [None, gate_values.as_deref()] {
            let mut out = vec![f32::NAN; m * hidden];
            let masks = masked.then_some(&masks[..]);
            compute.sparse_mlp(
                &mlp.borrow(),
                &SparseMlpInputs { x: &x, rows: m, neurons: &ids, masks, gate: gate_values },
                &mut out,
            );
            let pool = Pooled::new(mlp, &ids);
            let mut from_pool = vec![f32::NAN; m * hidden];
            let gate_read = gate_values.is_none();
            compute.sparse_mlp(
                &pool.borrow(mlp, gate_read),
                &SparseMlpInputs { x: &x, rows: m, neurons: &ids, masks, gate: gate_values },
                &mut from_pool,
            );
            assert_eq!(bits(&from_pool), bits(&out), "packed {} m={m} {}", mlp.up.dtype, describe(compute));
            for t in 0..m {
                let bits = masks.map_or(&union[..], |v| &v[t * words..(t + 1) * words]);
                let want = mlp.reference(&x[t * hidden..(t + 1) * hidden], &|i| bits[i / 64] >> (i % 64) & 1 == 1);
                for c in 0..hidden {
                    let tolerance = (hidden as f64 / 8.0 + ids.len() as f64 + 80.0) * 4.0 * U * want[c].1;
                    assert_close(out[t * hidden + c], want[c].0, tolerance, &|| {
                        format!(
                            "sparse_mlp {} m={m} I={neurons} H={hidden} [{t}, {c}] {}",
                            mlp.up.dtype,
                            describe(compute)
                        )
                    });
                }
            }
        }
    }
}

#[test]
fn sparse_mlp() {
    let mut random = Random(3);
    for compute in tiers_to_test() {
        for dtype in DType::ALL {
            for gated in [false, true] {
                for a in [Activation::Silu, Activation::Relu, Activation::ReluSquared] {
                    for (neurons, hidden) in
                        [(0, 8), (1, 1), (2, 15), (31, 16), (33, 17), (64, 33), (65, 64), (130, 65)]
                    {
                        let mlp = Mlp::random(dtype, neurons, hidden, gated, a, &mut random);
                        for m in [0, 1, 2, 8] {
                            check_sparse_mlp(&compute, &mlp, m, 2, &mut random);
                        }
                    }
                }
                let mlp = Mlp::random(dtype, 151, 40, gated, Activation::GeluTanh, &mut random);
                for m in [3, 16, 17, 35] {
                    check_sparse_mlp(&compute, &mlp, m, 5, &mut random);
                }
                let mlp = Mlp::random(dtype, 2501, 300, gated, Activation::Gelu, &mut random);
                check_sparse_mlp(&compute, &mlp, 1, 1, &mut random);
            }
        }
    }
}

#[test]
fn results_do_not_depend_on_threads() {
    let mut random = Random(4);
    let mlp = Mlp::random(DType::BF16, 1001, 129, true, Activation::Silu, &mut random);
    let x = random.values(2 * 129);
    let ids: Vec<u32> = (0..1001).filter(|i| i % 3 != 0).collect();
    let w = Sample::random(DType::F16, 129, 1001, &mut random);
    for isa in Isa::ALL {
        let mut first: Option<(Vec<f32>, Vec<f32>)> = None;
        for threads in [1, 2, 3, 5] {
            let Ok(compute) = Compute::with_isa(isa, Some(threads)) else { break };
            let (mut out, mut second) = (vec![0.0; 2 * 129], vec![0.0; 2 * 1001]);
            compute.sparse_mlp(
                &mlp.borrow(),
                &SparseMlpInputs { x: &x, rows: 2, neurons: &ids, masks: None, gate: None },
                &mut out,
            );
            compute.linear_in_out(&x, 2, w.matrix(), None, None, &mut second);
            let first = first.get_or_insert_with(|| (out.clone(), second.clone()));
            assert_eq!(*first, (out, second), "{isa} {threads}");
        }
    }
}

#[test]
fn norms_sums_and_rope() {
    let mut random = Random(5);
    for compute in tiers_to_test() {
        for n in EDGES.into_iter().skip(1).chain([5000]) {
            for rows in [0, 1, 3] {
                let (x, weight, bias) = (random.values(rows * n), random.values(n), random.values(n));
                let mut out = vec![f32::NAN; rows * n];
                let context = || format!("n={n} rows={rows} {}", describe(&compute));
                let relative = (n as f64 / 32.0 + 16.0) * U;
                compute.rms_norm(&x, &weight, 1.0, 1e-5, &mut out);
                for (r, row) in x.chunks_exact(n).enumerate() {
                    let squares: f64 = row.iter().map(|&v| f64::from(v).powi(2)).sum();
                    let scale = 1.0 / (squares / n as f64 + f64::from(1e-5f32)).sqrt();
                    for i in 0..n {
                        let want = f64::from(row[i]) * scale * (f64::from(weight[i]) + 1.0);
                        let tolerance = relative * f64::from(row[i]).abs() * scale * 2.0;
                        assert_close(out[r * n + i], want, tolerance, &|| format!("rms_norm {}", context()));
                    }
                }
                compute.layer_norm(&x, &weight, Some(&bias), 1e-3, &mut out);
                for (r, row) in x.chunks_exact(n).enumerate() {
                    let mean = row.iter().map(|&v| f64::from(v)).sum::<f64>() / n as f64;
                    let variance = row.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / n as f64;
                    let scale = 1.0 / (variance + f64::from(1e-3f32)).sqrt();
                    for i in 0..n {
                        let want = (f64::from(row[i]) - mean) * scale * f64::from(weight[i]) + f64::from(bias[i]);
                        let tolerance = 4.0 * relative * (scale + 1.0);
                        assert_close(out[r * n + i], want, tolerance, &|| format!("layer_norm {}", context()));
                    }
                }
                let mut plain = vec![f32::NAN; rows * n];
                compute.layer_norm(&x, &weight, None, 1e-3, &mut plain);
                for i in 0..rows * n {
                    assert!((plain[i] + bias[i % n] - out[i]).abs() < 1e-5);
                }
                let y = random.values(rows * n);
                let mut sum = x.clone();
                compute.add_assign(&mut sum, &y);
                assert!(sum.iter().zip(&x).zip(&y).all(|((s, a), b)| *s == a + b));
            }
        }
        for (rows, heads, head_dim, rotary) in
            [(0, 1, 2, 2), (1, 1, 2, 2), (3, 2, 64, 64), (2, 3, 80, 32), (2, 1, 34, 34), (65, 4, 64, 48), (1, 2, 3, 0)]
        {
            let x = random.values(rows * heads * head_dim);
            let (cos, sin) = (random.values(rows * rotary / 2), random.values(rows * rotary / 2));
            let mut out = x.clone();
            compute.rope(&mut out, heads, head_dim, &cos, &sin, rotary);
            for (h, (got, x)) in out.chunks_exact(head_dim).zip(x.chunks_exact(head_dim)).enumerate() {
                let (row, half) = (h / heads, rotary / 2);
                for i in 0..head_dim {
                    let angle = |i: usize| (f64::from(cos[row * half + i]), f64::from(sin[row * half + i]));
                    let at = |i: usize| f64::from(x[i]);
                    let want = if i < half {
                        at(i) * angle(i).0 - at(i + half) * angle(i).1
                    } else if i < rotary {
                        at(i) * angle(i - half).0 + at(i - half) * angle(i - half).1
                    } else {
                        at(i)
                    };
                    assert_close(got[i], want, 4.0 * U, &|| format!("rope {}", describe(&compute)));
                }
            }
        }
    }
}

#[test]
fn softmax_and_argmax() {
    let mut random = Random(6);
    for compute in tiers_to_test() {
        for n in EDGES.into_iter().chain([32003]) {
            let x: Vec<f32> = random.values(n).iter().map(|v| v * 20.0).collect();
            let mut got = x.clone();
            compute.softmax(&mut got);
            let max = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let sum: f64 = x.iter().map(|&v| f64::from(v - max).exp()).sum();
            for i in 0..n {
                let want = f64::from(x[i] - max).exp() / sum;
                let tolerance = (n as f64 / 32.0 + 24.0) * U * want + 1e-37;
                assert_close(got[i], want, tolerance, &|| format!("softmax n={n} {}", describe(&compute)));
            }
            if n == 0 {
                assert_eq!(compute.argmax(&x), 0);
                continue;
            }
            let best = x.iter().position(|&v| v == max).unwrap();
            assert_eq!(compute.argmax(&x), best);
            let mut x = x;
            x[n - 1] = max;
            assert_eq!(compute.argmax(&x), best.min(n - 1));
            let at = random.below(n);
            x[at] = f32::NAN;
            let want = (0..n).filter(|&i| !x[i].is_nan()).max_by(|&a, &b| x[a].total_cmp(&x[b]).then(b.cmp(&a)));
            assert_eq!(compute.argmax(&x), want.unwrap_or(0));
            compute.softmax(&mut x);
            assert!(x.iter().all(|v| v.is_nan()), "softmax with NaN at {at} of {n}");
            assert_eq!(compute.argmax(&x), 0);
            let mut x = vec![f32::NEG_INFINITY; n];
            compute.softmax(&mut x);
            assert!(x.iter().all(|v| v.is_nan()));
            let mut x = vec![f32::NEG_INFINITY; n];
            x[n / 2] = -5.0;
            assert_eq!(compute.argmax(&x), n / 2);
            compute.softmax(&mut x);
            assert_eq!(x[n / 2], 1.0);
        }
    }
}

#[test]
fn nan_and_infinity_reach_the_results_they_should() {
    let mut random = Random(8);
    for compute in tiers_to_test() {
        for dtype in DType::FLOATS {
            for k in [1, 5, 16, 40, 67] {
                for (special, m) in
                    [f32::NAN, f32::INFINITY, f32::NEG_INFINITY].into_iter().flat_map(|s| [(s, 2), (s, 21)])
                {
                    let n = 9;
                    let mut values = random.values(n * k);
                    let (row, col) = (random.below(n), random.below(k));
                    values[row * k + col] = special;
                    let w = Sample::new(dtype, n, k, &values);
                    let x: Vec<f32> = random.values(m * k).iter().map(|v| v.abs() + 0.1).collect();
                    let mut out = vec![0.0; m * n];
                    compute.linear(&x, m, &mut [LinearPart { weights: w.matrix().into(), bias: None, out: &mut out }]);
                    for (i, v) in out.iter().enumerate() {
                        let same = if i % n == row {
                            v.to_bits() == special.to_bits() || v.is_nan() && special.is_nan()
                        } else {
                            v.is_finite()
                        };
                        assert!(same, "linear {dtype} {special} {v} {}", describe(&compute));
                    }
                    let x: Vec<f32> = random.values(m * n).iter().map(|v| v.abs() + 0.1).collect();
                    let mut out = vec![0.0; m * k];
                    compute.linear_in_out(&x, m, w.matrix(), None, None, &mut out);
                    for (i, v) in out.iter().enumerate() {
                        let same = if i % k == col {
                            v.to_bits() == special.to_bits() || v.is_nan() && special.is_nan()
                        } else {
                            v.is_finite()
                        };
                        assert!(same, "linear_in_out {dtype} {special} {v} {}", describe(&compute));
                    }
                }
            }
        }
    }
}

#[test]
fn special_values_and_int8() {
    let mut random = Random(13);
    for compute in tiers_to_test() {
        for k in [1, 40, 67, 200] {
            for special in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                for m in [2, 21] {
                    let w = Sample::random(DType::I8, 9, k, &mut random);
                    let mut x = random.values(m * k);
                    x[k + random.below(k)] = special;
                    let mut out = vec![0.0; m * 9];
                    compute.linear(&x, m, &mut [LinearPart { weights: w.matrix().into(), bias: None, out: &mut out }]);
                    for (i, v) in out.iter().enumerate() {
                        assert_eq!(v.is_nan(), i / 9 == 1, "{special} {v} {}", describe(&compute));
                    }
                }
            }
        }
    }
}

/// Quantising never makes the code -128, but checkpoints that were quantised elsewhere have it.
#[test]
fn int8_codes_go_down_to_minus_128() {
    let (n, k) = (19, 1000);
    let mut bytes = vec![0; n * DType::I8.row_bytes(k)];
    for row in bytes.chunks_exact_mut(DType::I8.row_bytes(k)) {
        assemble_int8(&vec![-128; k], 0.5, row);
    }
    for compute in tiers_to_test() {
        for m in [1, 8, 40] {
            for x in [1.0, -1.0] {
                let mut out = vec![f32::NAN; m * n];
                let weights = Matrix::new(DType::I8, n, k, &bytes).into();
                compute.linear(&vec![x; m * k], m, &mut [LinearPart { weights, bias: None, out: &mut out }]);
                // All activations are the largest, of code ±127: the sum is exact, and rounded when it is scaled.
                let expected = -64.0 * x * k as f32;
                let close = |v: &f32| (v - expected).abs() <= 4.0 * f32::EPSILON * expected.abs();
                assert!(out.iter().all(close), "{:?}, expected {expected}, {}", out[0], describe(&compute));
            }
        }
    }
}

#[test]
fn int8_products_are_the_same_in_every_tier() {
    let mut random = Random(14);
    for (m, n, k) in [(1, 9, 1000), (8, 17, 4099), (3, 5, 129), (30, 33, 513)] {
        let w = Sample::random(DType::I8, n, k, &mut random);
        let x = random.values(m * k);
        let mut first: Option<Vec<f32>> = None;
        for compute in tiers_to_test() {
            let mut out = vec![f32::NAN; m * n];
            compute.linear(&x, m, &mut [LinearPart { weights: w.matrix().into(), bias: None, out: &mut out }]);
            assert_eq!(first.get_or_insert_with(|| out.clone()), &out, "{}", describe(&compute));
        }
    }
}

#[test]
fn transposition() {
    let mut random = Random(9);
    for compute in tiers_to_test() {
        for dtype in DType::FLOATS {
            for (rows, cols) in [(0, 3), (3, 0), (1, 1), (2, 65), (64, 64), (65, 130), (300, 257)] {
                let w = Sample::random(dtype, rows, cols, &mut random);
                let mut bytes = vec![0; w.matrix().bytes().len()];
                transpose(&compute, w.matrix(), &mut bytes);
                let mut got = vec![0.0; rows * cols];
                decode(dtype, &bytes, &mut got);
                for r in 0..rows {
                    for c in 0..cols {
                        assert_eq!(f64::from(got[c * rows + r]), w.at(r, c));
                    }
                }
            }
        }
    }
}

#[test]
fn values_without_their_bit_are_zeroed() {
    let mut random = Random(15);
    for compute in tiers_to_test() {
        for n in EDGES.into_iter().filter(|&n| n > 0).chain([9000]) {
            let (m, words) = (3, mask_words(n));
            let mut values = random.values(m * n);
            values[n / 2] = f32::NAN;
            values[n - 1] = f32::INFINITY;
            let masks: Vec<u64> = (0..m * words).map(|_| random.next()).collect();
            let mut got = values.clone();
            compute.zero_unset(&mut got, n, &masks);
            for (i, (got, value)) in got.iter().zip(&values).enumerate() {
                let set = masks[i / n * words + i % n / 64] >> (i % n % 64) & 1 == 1;
                let want = if set { *value } else { 0.0 };
                assert_eq!(got.to_bits(), want.to_bits(), "{i} of {n}, {}", describe(&compute));
            }
        }
    }
}

#[test]
fn mean_and_deviation() {
    let mut random = Random(10);
    for compute in tiers_to_test() {
        assert_eq!(compute.mean_std(&[]), (0.0, 0.0));
        assert_eq!(compute.mean_std(&[3.0; 77]), (3.0, 0.0));
        for n in EDGES.into_iter().skip(1) {
            let x: Vec<f32> = random.values(n).iter().map(|v| v + 100.0).collect();
            let mean = x.iter().map(|&v| f64::from(v)).sum::<f64>() / n as f64;
            let variance = x.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / n as f64;
            let got = compute.mean_std(&x);
            assert_close(got.0, mean, 100.0 * 2.0 * U, &|| "mean".into());
            assert_close(got.1, variance.sqrt(), 1e-5, &|| "deviation".into());
        }
    }
}

#[test]
#[should_panic(expected = "linear: out.len() is not m * n")]
fn a_wrong_length_names_itself() {
    let bytes = [0; 24];
    let weights = Matrix::new(DType::F32, 2, 3, &bytes);
    let mut out = [0.0; 3];
    Compute::new(Some(1)).linear(
        &[0.0; 3],
        1,
        &mut [LinearPart { weights: weights.into(), bias: None, out: &mut out }],
    );
}

#[test]
fn strided_rows_give_the_same_products() {
    let mut random = Random(12);
    for compute in tiers_to_test() {
        for dtype in DType::ALL {
            let (n, k) = (37, 70);
            let stored = Sample::random(dtype, n, k, &mut random);
            let plain = stored.matrix();
            let stride = plain.row_bytes() + 9;
            let mut bytes = vec![0xff; n * stride];
            (0..n).for_each(|i| bytes[i * stride..][..plain.row_bytes()].copy_from_slice(plain.row(i)));
            let strided = Matrix::strided(dtype, n, k, stride, &bytes);
            for range in [0..n, 5..n, 5..21, n..n] {
                let (plain, strided) = (plain.row_range(range.clone()), strided.row_range(range.clone()));
                let n = range.len();
                for m in [1, 3, 9, 33] {
                    let (x, y) = (random.values(m * k), random.values(m * n));
                    let products = |weights: Matrix| {
                        let (mut out, mut back) = (vec![f32::NAN; m * n], vec![f32::NAN; m * k]);
                        compute.linear(&x, m, &mut [LinearPart { weights: weights.into(), bias: None, out: &mut out }]);
                        compute.linear_in_out(&y, m, weights, None, None, &mut back);
                        (bits(&out), bits(&back))
                    };
                    assert_eq!(products(plain), products(strided), "{dtype} m={m} {range:?} {}", describe(&compute));
                }
            }
        }
    }
}

#[test]
#[should_panic(expected = "Matrix::strided: 40 bytes for [3, 8] of f16 every 16 bytes")]
fn strided_rows_past_the_end_are_refused() {
    Matrix::strided(DType::F16, 3, 8, 16, &[0; 40]);
}

#[test]
#[should_panic(expected = "sparse_mlp: packed.rows holds Some(4), of 4 rows")]
fn a_packed_row_out_of_range_is_refused() {
    let mlp = Mlp::random(DType::F32, 4, 3, true, Activation::Silu, &mut Random(11));
    let packed = Some(Packed { neurons: 9, rows: &[1, 4] });
    let mlp = SparseMlp { packed, ..mlp.borrow() };
    Compute::new(Some(1)).sparse_mlp(
        &mlp,
        &SparseMlpInputs { x: &[0.0; 3], rows: 1, neurons: &[2, 8], masks: None, gate: None },
        &mut [0.0; 3],
    );
}

#[test]
#[should_panic(expected = "sparse_mlp: neurons holds Some(4), of 4 rows")]
fn an_id_out_of_range_is_refused() {
    let mlp = Mlp::random(DType::F32, 4, 3, true, Activation::Silu, &mut Random(11));
    Compute::new(Some(1)).sparse_mlp(
        &mlp.borrow(),
        &SparseMlpInputs { x: &[0.0; 3], rows: 1, neurons: &[0, 4], masks: None, gate: None },
        &mut [0.0; 3],
    );
}

proptest! {
    #[test]
    fn masks_agree_with_a_list_of_booleans(
        scores in proptest::collection::vec(
            prop_oneof![8 => -2.0f32..2.0, 1 => Just(0.0f32), 1 => Just(-0.0f32), 1 => Just(f32::NAN), 1 => Just(f32::INFINITY), 1 => Just(0.5f32)],
            0..300,
        ),
        threshold in prop_oneof![Just(0.0f32), Just(0.5f32), -1.0f32..1.0],
        magnitude: bool,
    ) {
        for compute in tiers_to_test() {
            let active: Vec<bool> = scores
                .iter()
                .map(|&v| (if magnitude { v.abs() } else { v }) > threshold)
                .collect();
            let mut mask = vec![u64::MAX; mask_words(scores.len())];
            compute.mask_above(&scores, threshold, magnitude, &mut mask);
            check_mask(&compute, &active, &mask);
            let nonzero: Vec<bool> = scores.iter().map(|&v| v != 0.0).collect();
            let second = mask_of(&nonzero);
            check_mask(&compute, &nonzero, &second);
            let both: Vec<bool> = active.iter().zip(&nonzero).map(|(a, b)| a | b).collect();
            let mut union = vec![u64::MAX; mask.len()];
            union_masks(&[mask.clone(), second].concat(), mask.len(), &mut union);
            check_mask(&compute, &both, &union);
        }
    }
}

fn mask_of(active: &[bool]) -> Vec<u64> {
    active.chunks(64).map(|bits| bits.iter().rev().fold(0, |word, &bit| word << 1 | u64::from(bit))).collect()
}

fn check_mask(compute: &Compute, want: &[bool], mask: &[u64]) {
    let bits: Vec<bool> = (0..mask.len() * 64).map(|i| mask[i / 64] >> (i % 64) & 1 == 1).collect();
    assert_eq!(&bits[..want.len()], want, "{}", describe(compute));
    assert!(!bits[want.len()..].contains(&true), "bits past the end");
    assert_eq!(count_ones(mask), want.iter().filter(|&&b| b).count());
    let mut ids = vec![7; 3];
    compute.mask_to_ids(mask, &mut ids);
    let expected: Vec<u32> = (0..want.len() as u32).filter(|&i| want[i as usize]).collect();
    assert_eq!(ids, expected);
}
