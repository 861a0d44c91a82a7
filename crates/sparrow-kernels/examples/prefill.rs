//! Prefill products against the peaks of the machine: `cargo run --release -p sparrow-kernels --example prefill [TOKENS]`.
//!
//! Peaks and products are measured in turn, so that a busy machine slows both; several weights are cycled, so that they come
//! from memory as in a model.

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
    let tokens: usize = std::env::args().nth(1).map_or(512, |t| t.parse().expect("TOKENS"));
    let compute = Compute::new(None);
    println!("{} on {} threads, {tokens} tokens", compute.isa(), compute.threads());
    for (n, k) in [(3072, 3072), (8192, 3072), (3072, 8192)] {
        for dtype in [DType::BF16, DType::F16, DType::F32] {
            let copies = if dtype == DType::BF16 { 16 } else { 4 };
            let mut one = [0u8; 4];
            encode(dtype, &[0.5], &mut one[..dtype.row_bytes(1)]);
            let bytes: Vec<Vec<u8>> = (0..copies).map(|_| one[..dtype.row_bytes(1)].repeat(n * k)).collect();
            let x = vec![0.25f32; tokens * k];
            let mut out = vec![0.0; tokens * n];
            let operations = 2.0 * (tokens * n * k) as f64 / 1e12;
            let mut results = [(); 4].map(|()| Vec::new());
            for bytes in &bytes {
                let peaks = peak(&compute);
                let peak = if dtype == DType::BF16 { peaks.bf16.unwrap_or(peaks.f32) } else { peaks.f32 };
                let weights = Matrix::new(dtype, n, k, bytes);
                let rate = operations
                    / seconds(|| compute.linear(&x, tokens, &mut [LinearPart { weights, bias: None, out: &mut out }]));
                let weights = Matrix::new(dtype, k, n, bytes);
                let in_out = operations / seconds(|| compute.linear_in_out(&x, tokens, weights, None, None, &mut out));
                assert!(out.iter().all(|&v| v == 0.125 * k as f32));
                for (list, value) in results.iter_mut().zip([rate, rate / peak, in_out, in_out / peak]) {
                    list.push(value);
                }
            }
            let best = results[1].iter().copied().fold(0.0, f64::max);
            let [rate, of_peak, in_out, in_out_of_peak] = results.map(median);
            println!(
                "{n:>5} x {k:<5} {dtype:>4}: linear {rate:.3} TFLOP/s, {of_peak:.2} of peak (best {best:.2}); \
                 linear_in_out {in_out:.3}, {in_out_of_peak:.2}"
            );
        }
    }
}
