//! Attention against what the machine can do, at the shape of Llama 3.2 3B:
//! `cargo run --release -p sparrow-kernels --example attention`.
//!
//! Decode against the read bandwidth, prefill against the peak of the unit that multiplies; measured in turn, medians.

use sparrow_kernels::*;
use std::time::Instant;

/// Layers of the model.
const LAYERS: f64 = 28.0;
const ROUNDS: usize = 5;

fn seconds(f: impl FnOnce()) -> f64 {
    let start = Instant::now();
    f();
    start.elapsed().as_secs_f64()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() {
    let compute = Compute::new(None);
    println!("{} on {} threads", compute.isa(), compute.threads());
    let shape = AttentionShape { heads: 24, kv_heads: 8, head_dim: 128, scale: 0.088, soft_cap: None };
    let width = shape.heads * shape.head_dim;
    for dtype in [DType::BF16, DType::I8, DType::F16, DType::F32] {
        let mut stored = vec![0; dtype.row_bytes(shape.head_dim)];
        encode(dtype, &vec![0.25; shape.head_dim], &mut stored);
        for (rows, capacity) in [(512, 512), (2048, 2048), (1, 8192), (1, 32768)] {
            let cache = shape.kv_heads * capacity * stored.len();
            let [keys, values] = [(); 2].map(|()| stored.repeat(shape.kv_heads * capacity));
            let (q, mut out) = (vec![0.5f32; rows * width], vec![0.0; rows * width]);
            let view = |r| KvView {
                rows: KvRows::Dense(DenseKv { dtype, keys: &keys, values: &values, capacity }),
                start: 0,
                len: capacity - rows + r + 1,
            };
            let mut run = || seconds(|| compute.attention(&shape, &q, rows, &view, &mut out));
            run();
            let rounds: Vec<[f64; 2]> = (0..ROUNDS)
                .map(|_| {
                    let taken = run();
                    // The caches of all layers pass between two steps of a model; so does this probe's buffer.
                    let floor = if rows > 1 {
                        let operations = 2.0 * (rows * (rows + 1) * width) as f64 / 1e12;
                        let peak = peak(&compute);
                        operations / if matches!(dtype, DType::BF16 | DType::I8) { peak.bf16 } else { peak.f32 }
                    } else {
                        2.0 * cache as f64 / 1e9 / read_bandwidth(&compute)
                    };
                    [taken, floor]
                })
                .collect();
            assert!(out.iter().all(|v| (v - 0.25).abs() < 1e-2 * 0.25));
            let what = if rows > 1 { "prefill of" } else { "decode over" };
            let [taken, floor] = [0, 1].map(|i| median(rounds.iter().map(|r| r[i]).collect()) * 1e3 * LAYERS);
            let ratio = median(rounds.iter().map(|r| r[0] / r[1]).collect());
            println!(
                "{dtype:5} {what} {capacity:5}: {taken:7.2} ms of {floor:7.2} ms over {LAYERS} layers, {ratio:.2} × the floor ({:.2})",
                1.0 / ratio
            );
        }
    }
}
