//! Prefill products against the peaks of the machine:
//! `cargo run --release -p sparrow-kernels --example prefill [TOKENS [f32|f16|bf16|int8|int4]]`.
//!
//! Every table of the best tier (`SPARROW_ISA` caps it) is measured in turn with its peaks, so that a busy machine slows all
//! alike: AVX2 with AVX-VNNI and without, where the CPU has it. Several weights are cycled, so that they come from memory as
//! in a model, and tables take turns at being first.

use sparrow_kernels::*;
use std::time::Instant;

/// Outputs of the parts and inputs: the products of Llama 3.2 3B.
const SHAPES: [(&[usize], usize); 4] =
    [(&[3072], 3072), (&[3072, 1024, 1024], 3072), (&[8192, 8192], 3072), (&[3072], 8192)];
/// Bytes of weights that are cycled.
const BYTES: usize = 400 << 20;
/// What every weight is, and every input.
const VALUES: [f32; 2] = [0.5, 0.25];

fn seconds(f: impl FnOnce()) -> f64 {
    let start = Instant::now();
    f();
    start.elapsed().as_secs_f64()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// A matrix of one value.
fn weights(dtype: DType, rows: usize, cols: usize) -> Vec<u8> {
    let mut row = vec![0u8; dtype.row_bytes(cols)];
    encode(dtype, &vec![VALUES[0]; cols], &mut row);
    row.repeat(rows)
}

/// Whether all outputs are what they must be, but for the rounding of the weights.
fn right(out: &[f32], k: usize) -> bool {
    let expected = VALUES[0] * VALUES[1] * k as f32;
    out.iter().all(|&v| (v - expected).abs() <= 0.01 * expected)
}

fn main() {
    let tokens: usize = std::env::args().nth(1).map_or(512, |t| t.parse().expect("TOKENS"));
    let only: Option<DType> = std::env::args().nth(2).map(|d| d.parse().expect("DTYPE"));
    let mut computes = Compute::all(default_threads());
    computes.retain(|compute| compute.isa() == Isa::best());
    println!("{} on {} threads, {tokens} tokens", computes[0].isa(), computes[0].threads());
    for dtype in [DType::BF16, DType::F16, DType::F32, DType::I8, DType::I4G32] {
        if only.is_some_and(|only| only != dtype) {
            continue;
        }
        for (parts, k) in SHAPES {
            let n: usize = parts.iter().sum();
            let first = parts[0];
            let copies = (BYTES / (n * dtype.row_bytes(k))).clamp(3, 16);
            let by_output: Vec<Vec<u8>> = (0..copies).map(|_| weights(dtype, n, k)).collect();
            let by_input: Vec<Vec<u8>> = (0..copies).map(|_| weights(dtype, k, first)).collect();
            let x = vec![VALUES[1]; tokens * k];
            let mut outs: Vec<Vec<f32>> = parts.iter().map(|n| vec![0.0; tokens * n]).collect();
            let operations = 2.0 * (tokens * n * k) as f64 / 1e12;
            let mut results = vec![[(); 4].map(|()| Vec::new()); computes.len()];
            for turn in 0..copies * computes.len() {
                let (copy, table) = (turn % copies, (turn % copies + turn / copies) % computes.len());
                let (compute, results) = (&computes[table], &mut results[table]);
                let peaks = peak(compute);
                let of_inputs = if dtype == DType::I8 { peaks.int8 } else { peaks.f32 };
                let [peak, in_out_peak] = match dtype {
                    DType::BF16 => [peaks.bf16; 2],
                    DType::F16 | DType::F32 => [peaks.f32; 2],
                    // Codes by inputs become floats.
                    _ => [peaks.int8, of_inputs],
                };
                let mut rest = &by_output[copy][..];
                let mut linear: Vec<LinearPart> = (parts.iter().zip(&mut outs))
                    .map(|(&n, out)| {
                        let (here, after) = rest.split_at(n * dtype.row_bytes(k));
                        rest = after;
                        LinearPart { weights: Matrix::new(dtype, n, k, here).into(), bias: None, out }
                    })
                    .collect();
                let rate = operations / seconds(|| compute.linear(&x, tokens, &mut linear));
                assert!(outs.iter().all(|out| right(out, k)));
                let weights = Matrix::new(dtype, k, first, &by_input[copy]);
                let mut part = [LinearPart { weights: weights.into(), bias: None, out: &mut outs[0] }];
                let in_out = operations * first as f64
                    / n as f64
                    / seconds(|| compute.linear_in_out(&x, tokens, None, &mut part));
                assert!(right(&outs[0], k));
                for (list, value) in results.iter_mut().zip([rate, rate / peak, in_out, in_out / in_out_peak]) {
                    list.push(value);
                }
            }
            for (compute, results) in computes.iter().zip(results) {
                let best = results[1].iter().copied().fold(0.0, f64::max);
                let [rate, of_peak, in_out, in_out_of_peak] = results.map(median);
                println!(
                    "{n:>5} x {k:<5} {dtype:>4}, {}: linear {rate:.3} T/s, {of_peak:.2} of peak (best {best:.2}); \
                     linear_in_out {in_out:.3}, {in_out_of_peak:.2}",
                    compute.table()
                );
            }
        }
    }
}
