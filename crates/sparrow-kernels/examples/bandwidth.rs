//! How close the kernels come to what the machine can do: `cargo run --release -p sparrow-kernels --example bandwidth`.
//!
//! Decode operations in GB/s of weights read, prefill in GFLOP/s, against the measured bandwidth and peaks.

use sparrow_kernels::*;
use std::time::Instant;

/// Seconds of the best of several calls.
fn best(calls: usize, mut f: impl FnMut()) -> f64 {
    (0..calls)
        .map(|_| {
            let start = Instant::now();
            f();
            start.elapsed().as_secs_f64()
        })
        .fold(f64::INFINITY, f64::min)
}

fn main() {
    let compute = Compute::new(None);
    println!("{} on {} threads", compute.isa(), compute.threads());
    let bandwidth = read_bandwidth(&compute);
    println!("read bandwidth {bandwidth:.1} GB/s, peak {:?}", peak(&compute));
    let empty = best(1000, || compute.pool().run(compute.threads(), &|_| ()));
    println!("empty parallel region {:.2} us", empty * 1e6);

    // Larger than any private cache: 32768 neurons of 4096, 256 MiB in 16 bits.
    let (n, k) = (32 * 1024, 4096);
    for dtype in DType::FLOATS {
        // Half of one, whatever the type: speed does not depend on values, except for subnormal ones.
        let mut one = [0u8; 4];
        encode(dtype, &[0.5], &mut one[..dtype.row_bytes(1)]);
        let bytes: Vec<u8> = one[..dtype.row_bytes(1)].repeat(n * k);
        let weights = Matrix::new(dtype, n, k, &bytes);
        for m in [1, 2, 4, 8] {
            let x = vec![0.25f32; m * n];
            let mut out = vec![0.0; m * n];
            let time = best(5, || {
                compute.linear(&x[..m * k], m, &mut [LinearPart { weights, bias: None, out: &mut out }]);
            });
            let in_out = best(5, || {
                compute.linear_in_out(&x, m, weights, None, None, &mut out[..m * k]);
            });
            let rate = |time: f64, bytes: usize| {
                let rate = bytes as f64 / time / 1e9;
                format!("{rate:5.1} GB/s ({:3.0} %)", 100.0 * rate / bandwidth)
            };
            // Three matrices of a third of the rows each, a tenth of the neurons active.
            let third = n / 3;
            let part = |i: usize| weights.row_range(i * third..(i + 1) * third);
            let mlp = SparseMlp {
                gate: Some(part(0)),
                up: part(1),
                down: part(2),
                gate_bias: None,
                up_bias: None,
                down_bias: None,
                activation: Activation::Silu,
            };
            let mut sparse = Vec::new();
            for every in [1, 10] {
                let ids: Vec<u32> = (0..third as u32).filter(|i| i.wrapping_mul(2_654_435_761) % every == 0).collect();
                let time = best(5, || compute.sparse_mlp(&mlp, &x[..m * k], m, &ids, None, None, &mut out[..m * k]));
                sparse.push(rate(time, 3 * ids.len() * k * dtype.row_bytes(1)));
            }
            println!(
                "{dtype:>4} m={m}: linear {}, linear_in_out {}, sparse_mlp all {}, one in ten {}",
                rate(time, bytes.len()),
                rate(in_out, bytes.len()),
                sparse[0],
                sparse[1]
            );
        }
        let (m, n) = (256, 4096);
        let weights = weights.row_range(0..n);
        let (x, mut out) = (vec![0.25f32; m * k], vec![0.0; m * n]);
        let time = best(3, || compute.linear(&x, m, &mut [LinearPart { weights, bias: None, out: &mut out }]));
        let in_out = best(3, || compute.linear_in_out(&x, m, weights, None, None, &mut out));
        let rate = |time: f64| 2.0 * (m * n * k) as f64 / time / 1e9;
        println!("{dtype:>4} m={m}: linear {:.0} GFLOP/s, linear_in_out {:.0}", rate(time), rate(in_out));
    }
}
