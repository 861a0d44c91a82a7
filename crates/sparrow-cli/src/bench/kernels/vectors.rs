//! The kernels around the layers, on vectors of f32 that stay in the caches, and the sparse MLP of integers.

use sparrow_kernels::{Activation, Compute, Integer, IntegerActivation, IntegerMlp, mask_words};

use super::case::{Call, Case, Results, Work};
use super::data::{HEAD_DIM, HEADS, HIDDEN, INTERMEDIATE, VOCABULARY, ids, random};
use crate::output::percent;

pub const NAMES: [&str; 12] = [
    "rms_norm",
    "layer_norm",
    "add_assign",
    "rope",
    "activate",
    "gated",
    "softmax",
    "argmax",
    "select_mean_std",
    "select_kth_largest",
    "mask_to_ids",
    "sparse_mlp_integer",
];

/// Tokens of a prompt.
const PROMPT: usize = 512;

pub fn cases() -> Vec<Case<'static>> {
    let mut cases = Vec::new();
    for rows in [1, PROMPT] {
        cases.extend(rows_of_hidden(rows));
    }
    cases.extend(logits());
    cases.extend(selection());
    cases
}

fn case(kernel: &'static str, shape: String, bytes: usize, call: Call<'static>) -> Case<'static> {
    Case {
        kernel,
        dtype: String::new(),
        shape,
        work: Work::Bytes(bytes),
        working_set: bytes,
        call,
        expected: None,
        tier: |_| true,
    }
}

/// Room for n results, that of the first call filled with `x` for what works in place.
fn room<'a>(floats: &'a mut Vec<f32>, x: &[f32]) -> &'a mut [f32] {
    if floats.len() != x.len() {
        *floats = x.to_vec();
    }
    floats
}

fn rows_of_hidden(rows: usize) -> Vec<Case<'static>> {
    let n = rows * HIDDEN;
    let (x, weight) = (random(n, 1), random(HIDDEN, 2));
    let mut cases = Vec::new();
    let mut add = |kernel, n: usize, width: usize, arrays: usize, call: Call<'static>| {
        cases.push(case(kernel, format!("[{rows}, {width}]"), arrays * 4 * n, call));
    };
    {
        let (x, weight) = (x.clone(), weight.clone());
        add(
            "rms_norm",
            n,
            HIDDEN,
            2,
            Box::new(move |c, _, r| c.rms_norm(&x, &weight, 0.0, 1e-5, room(&mut r.floats, &x))),
        );
    }
    {
        let (x, weight) = (x.clone(), weight.clone());
        add(
            "layer_norm",
            n,
            HIDDEN,
            2,
            Box::new(move |c, _, r| c.layer_norm(&x, &weight, Some(&weight), 1e-5, room(&mut r.floats, &x))),
        );
    }
    {
        let x = x.clone();
        add("add_assign", n, HIDDEN, 3, Box::new(move |c, _, r| c.add_assign(room(&mut r.floats, &x), &x)));
    }
    let (cos, sin): (Vec<f32>, Vec<f32>) =
        (0..rows * HEAD_DIM / 2).map(|i| ((i as f32).cos(), (i as f32).sin())).unzip();
    add(
        "rope",
        n,
        HIDDEN,
        2,
        Box::new(move |c, _, r| c.rope(room(&mut r.floats, &x), HEADS, HEAD_DIM, &cos, &sin, HEAD_DIM)),
    );
    let n = rows * INTERMEDIATE;
    let (gate, up) = (random(n, 3), random(n, 4));
    {
        let gate = gate.clone();
        add(
            "activate",
            n,
            INTERMEDIATE,
            2,
            Box::new(move |c, _, r| c.activate(Activation::Silu, room(&mut r.floats, &gate))),
        );
    }
    add(
        "gated",
        n,
        INTERMEDIATE,
        3,
        Box::new(move |c, _, r| c.gated(Activation::Silu, &gate, &up, room(&mut r.floats, &up))),
    );
    cases
}

fn logits() -> [Case<'static>; 2] {
    let x = random(VOCABULARY, 5);
    let shape = || format!("[{VOCABULARY}]");
    let softmax: Call = {
        let x = x.clone();
        Box::new(move |c, _, r| c.softmax(room(&mut r.floats, &x)))
    };
    let argmax: Call = Box::new(move |c, _, r| r.ids = vec![c.argmax(&x) as u32]);
    [case("softmax", shape(), 8 * VOCABULARY, softmax), case("argmax", shape(), 4 * VOCABULARY, argmax)]
}

/// A tenth of the neurons, chosen by mean + k·std, and by the k-th largest score (quantile and top-k); then as a list.
fn selection() -> [Case<'static>; 3] {
    let scores: Vec<f32> = {
        // Sums of six: nearly normal.
        let parts: Vec<Vec<f32>> = (0..6).map(|seed| random(INTERMEDIATE, 10 + seed)).collect();
        (0..INTERMEDIATE).map(|i| parts.iter().map(|part| part[i]).sum()).collect()
    };
    let mask = |c: &Compute, scores: &[f32], threshold: f32, r: &mut Results| {
        r.words.resize(mask_words(scores.len()), 0);
        c.mask_above(scores, threshold, false, &mut r.words);
    };
    let by_deviation: Call = {
        let scores = scores.clone();
        Box::new(move |c, _, r| {
            let (mean, std) = c.mean_std(&scores);
            mask(c, &scores, mean + 1.28 * std, r);
        })
    };
    let by_rank: Call = {
        let scores = scores.clone();
        Box::new(move |c, _, r| {
            let threshold = c.kth_largest(&scores, INTERMEDIATE / 10, &mut r.floats);
            r.floats.clear();
            mask(c, &scores, threshold.next_down(), r);
        })
    };
    let list: Call = {
        let words: Vec<u64> =
            scores.chunks(64).map(|w| w.iter().rev().fold(0, |bits, &v| bits << 1 | u64::from(v > 1.8))).collect();
        Box::new(move |c, _, r| c.mask_to_ids(&words, &mut r.ids))
    };
    let shape = || format!("[{INTERMEDIATE}] 10 % active");
    [
        case("select_mean_std", shape(), 4 * INTERMEDIATE, by_deviation),
        case("select_kth_largest", shape(), 4 * INTERMEDIATE, by_rank),
        case("mask_to_ids", shape(), INTERMEDIATE / 8, list),
    ]
}

/// One token through a gated MLP of 8192 neurons, a tenth of them active, in fixed point with 12 fraction bits.
pub fn integers<T: Integer + From<i16> + Into<i64>>(name: &str) -> Case<'static> {
    let of = 10;
    let fixed =
        |n: usize, seed: u64| -> Vec<T> { random(n, seed).iter().map(|v| T::from((v * 400.0) as i16)).collect() };
    // Rows repeat: making so many numbers would take longer than the measurement.
    let [gate, up, down] = [20, 21, 22].map(|seed| fixed(64 * HIDDEN, seed).repeat(INTERMEDIATE / 64));
    let x = fixed(HIDDEN, 23);
    let sets: Vec<Vec<u32>> = (0..of).map(|set| ids(INTERMEDIATE, of, set)).collect();
    let shape = format!("m=1 3 × [{INTERMEDIATE}, {HIDDEN}] {} active", percent(1.0 / of as f64));
    let bytes = 3 * INTERMEDIATE / of * HIDDEN * size_of::<T>();
    let call: Call = Box::new(move |c, i, r| {
        let mlp = IntegerMlp {
            neurons: INTERMEDIATE,
            hidden: HIDDEN,
            gate: Some(&gate),
            up: &up,
            down: &down,
            activation: IntegerActivation::Relu,
            fraction_bits: 12,
        };
        let mut out = vec![T::default(); HIDDEN];
        c.sparse_mlp_integer(&mlp, &x, 1, &sets[i % of], None, &mut out).expect("small numbers");
        r.integers = out.into_iter().map(Into::into).collect();
    });
    let case = case("sparse_mlp_integer", shape, bytes, call);
    Case { dtype: name.to_owned(), working_set: of * bytes, ..case }
}
