//! Prefill products against the peaks of the machine:
//! `cargo run --release -p sparrow-kernels --example prefill [TOKENS [f32|f16|bf16]]`.
//!
//! Peaks and products are measured in turn, so that a busy machine slows both; several weights are cycled, so that they
//! come from memory as in a model.

use sparrow_kernels::*;
use std::time::Instant;

/// Outputs of the parts and inputs: the products of Llama 3.2 3B.
const SHAPES: [(&[usize], usize); 4] =
    [(&[3072], 3072), (&[3072, 1024, 1024], 3072), (&[8192, 8192], 3072), (&[3072], 8192)];
/// Bytes of weights that are cycled.
const BYTES: usize = 400 << 20;

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
    let only: Option<DType> = std::env::args().nth(2).map(|d| d.parse().expect("DTYPE"));
    let compute = Compute::new(None);
    println!("{} on {} threads, {tokens} tokens", compute.isa(), compute.threads());
    for dtype in [DType::BF16, DType::F16, DType::F32] {
        if only.is_some_and(|only| only != dtype) {
            continue;
        }
        for (parts, k) in SHAPES {
            let n: usize = parts.iter().sum();
            let mut one = [0u8; 4];
            encode(dtype, &[0.5], &mut one[..dtype.row_bytes(1)]);
            let one = &one[..dtype.row_bytes(1)];
            let copies = (BYTES / (n * k * one.len())).clamp(3, 16);
            let bytes: Vec<Vec<u8>> = (0..copies).map(|_| one.repeat(n * k)).collect();
            let x = vec![0.25f32; tokens * k];
            let mut outs: Vec<Vec<f32>> = parts.iter().map(|n| vec![0.0; tokens * n]).collect();
            let operations = 2.0 * (tokens * n * k) as f64 / 1e12;
            let mut results = [(); 4].map(|()| Vec::new());
            for bytes in &bytes {
                let peaks = peak(&compute);
                let peak = if dtype == DType::BF16 { peaks.bf16 } else { peaks.f32 };
                let mut rest = &bytes[..];
                let mut linear: Vec<LinearPart> = (parts.iter().zip(&mut outs))
                    .map(|(&n, out)| {
                        let (here, after) = rest.split_at(n * k * one.len());
                        rest = after;
                        LinearPart { weights: Matrix::new(dtype, n, k, here).into(), bias: None, out }
                    })
                    .collect();
                let rate = operations / seconds(|| compute.linear(&x, tokens, &mut linear));
                assert!(outs.iter().flatten().all(|&v| v == 0.125 * k as f32));
                let n = parts[0];
                let weights = Matrix::new(dtype, k, n, &bytes[..k * n * one.len()]);
                let in_out = operations * n as f64
                    / parts.iter().sum::<usize>() as f64
                    / seconds(|| {
                        compute.linear_in_out(
                            &x,
                            tokens,
                            None,
                            &mut [LinearPart { weights: weights.into(), bias: None, out: &mut outs[0] }],
                        )
                    });
                assert!(outs[0].iter().all(|&v| v == 0.125 * k as f32));
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
