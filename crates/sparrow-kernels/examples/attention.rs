//! Attention against what the machine can do: `cargo run --release -p sparrow-kernels --example attention`.
//!
//! Prefill against the peak of the fused multiply-adds, decode against the read bandwidth; measured in turn.

use sparrow_kernels::*;
use std::time::Instant;

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
    let row = shape.heads * shape.head_dim;
    for (rows, capacity, layers) in [(512, 512, 4), (2048, 2048, 2), (1, 8192, 16), (1, 32768, 8)] {
        let cache = shape.kv_heads * capacity * shape.head_dim * 2;
        let mut one = [0; 2];
        encode(DType::BF16, &[0.25], &mut one);
        let caches: Vec<[Vec<u8>; 2]> = (0..layers).map(|_| [(); 2].map(|()| one.repeat(cache / 2))).collect();
        let (q, mut out) = (vec![0.5f32; rows * row], vec![0.0; rows * row]);
        let mut results = [(); 2].map(|()| Vec::new());
        for [keys, values] in &caches {
            let view =
                |r| KvView { dtype: DType::BF16, keys, values, capacity, start: 0, len: capacity - rows + r + 1 };
            let mut run = || seconds(|| compute.attention(&shape, &q, rows, &view, &mut out));
            if rows > 1 {
                run();
                let operations = 2.0 * (rows * (rows + 1) * row) as f64 / 1e12;
                let rate = operations / run();
                results[0].push(rate);
                results[1].push(rate / peak(&compute).f32);
            } else {
                let rate = 2.0 * cache as f64 / 1e9 / run();
                results[0].push(rate);
                results[1].push(rate / read_bandwidth(&compute));
            }
            assert!(out.iter().all(|v| (v - 0.25).abs() < 1e-5));
        }
        let [rate, ratio] = results.map(median);
        match rows {
            1 => println!("decode over {capacity}: {rate:.1} GB/s, {ratio:.2} of read bandwidth"),
            _ => println!("prefill of {rows}: {rate:.3} TFLOP/s, {ratio:.2} of f32 peak"),
        }
    }
}
