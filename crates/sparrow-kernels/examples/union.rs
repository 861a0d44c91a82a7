//! From which active fraction on an MLP of a few rows is faster dense:
//! `cargo run --release -p sparrow-kernels --example union [f32|bf16|int8|int4]`. Gathered and dense MLPs take turns
//! over several weights, so that they come from memory as in a model; what counts is the median of their ratios.

use sparrow_kernels::*;
use std::time::Instant;

/// Llama 3.2 3B.
const HIDDEN: usize = 3072;
const NEURONS: usize = 8192;
/// Weights that are cycled.
const COPIES: usize = 3;
const ROUNDS: usize = 4;

fn seconds(f: impl FnOnce()) -> f64 {
    let start = Instant::now();
    f();
    start.elapsed().as_secs_f64()
}

fn main() {
    let dtype: DType = std::env::args().nth(1).map_or(DType::BF16, |d| d.parse().expect("DTYPE"));
    let compute = Compute::new(None);
    println!("{} on {} threads, {dtype}: time gathered ÷ dense", compute.isa(), compute.threads());
    let fractions = [0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0];
    println!("rows {}", fractions.map(|f| format!("{f:>6}")).join(""));
    let mut row = vec![0; dtype.row_bytes(HIDDEN)];
    encode(dtype, &[0.01; HIDDEN], &mut row);
    let weights: Vec<Vec<u8>> = (0..3 * COPIES).map(|_| row.repeat(NEURONS)).collect();
    let matrix = |i: usize| Matrix::new(dtype, NEURONS, HIDDEN, &weights[i]);
    for m in 1..=8 {
        let x = vec![0.25f32; m * HIDDEN];
        let mut values = [(); 3].map(|()| vec![0.0; m * NEURONS]);
        let (mut sparse_out, mut dense_out) = (vec![0.0; m * HIDDEN], vec![0.0; m * HIDDEN]);
        let ratios = fractions.map(|fraction| {
            // Evenly spread: the worst case for a prefetcher.
            let ids: Vec<u32> = (0..NEURONS as u32)
                .filter(|&i| ((f64::from(i) + 1.0) * fraction).floor() > (f64::from(i) * fraction).floor())
                .collect();
            let mut mask = vec![0u64; mask_words(NEURONS)];
            ids.iter().for_each(|&i| mask[i as usize / 64] |= 1 << (i % 64));
            let masks = mask.repeat(m);
            let mut ratios: Vec<f64> = (0..ROUNDS * COPIES)
                .map(|i| {
                    let [gate, up, down] = [0, 1, 2].map(|w| matrix(i % COPIES * 3 + w).into());
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
                    let row_masks = (m > 1).then_some(masks.as_slice());
                    let gathered = seconds(|| {
                        compute.sparse_mlp(
                            &mlp,
                            &SparseMlpInputs { x: &x, rows: m, neurons: &ids, masks: row_masks, gate: None },
                            &mut sparse_out,
                        )
                    });
                    let dense = seconds(|| {
                        let [a, b, h] = &mut values;
                        let part = |weights, out| LinearPart { weights, bias: None, out };
                        compute.linear(&x, m, &mut [part(gate, a), part(up, b)]);
                        compute.gated(Activation::Silu, a, b, h);
                        compute.zero_unset(h, NEURONS, &masks);
                        compute.linear_in_out(
                            h,
                            m,
                            None,
                            &mut [LinearPart { weights: down, bias: None, out: &mut dense_out }],
                        );
                    });
                    gathered / dense
                })
                .collect();
            let close = |(a, b): (&f32, &f32)| (a - b).abs() <= 0.02 * b.abs() + 1e-4;
            assert!(sparse_out.iter().zip(&dense_out).all(close), "both must compute the same");
            ratios.sort_by(f64::total_cmp);
            ratios[ratios.len() / 2]
        });
        println!("{m:>4} {}", ratios.map(|r| format!("{r:>6.2}")).join(""));
    }
}
