//! From which density on a bitmap is no faster than dense weights:
//! `cargo run --release -p sparrow-kernels --example bitmap [DTYPE] [linear|in_out] [THREADS]`. Products with both
//! forms take turns over several copies of a weight, so that they come from memory as in a model; what counts is the
//! median of the ratios of their times.

use sparrow_kernels::*;
use std::time::Instant;

/// A projection of Llama 3.2 3B.
const ROWS: usize = 8192;
const COLS: usize = 3072;
/// Bytes of all copies: far beyond any cache.
const WORKING_SET: usize = 512 << 20;
const ROUNDS: usize = 24;
const DENSITIES: [f64; 7] = [0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0];

fn seconds(f: impl FnOnce()) -> f64 {
    let start = Instant::now();
    f();
    start.elapsed().as_secs_f64()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Rows of numbers of which a random `density` is not zero.
fn weights(compute: &Compute, dtype: DType, density: f64) -> Vec<u8> {
    let mut state = 88_172_645_463_325_252u64;
    let mut floats = vec![0; ROWS * DType::F32.row_bytes(COLS)];
    for value in floats.as_chunks_mut::<4>().0 {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let number = (state >> 40) as f32 / (1u64 << 24) as f32 + 0.01;
        *value = if (state & 0xffff) as f64 <= density * 65536.0 { number } else { 0.0 }.to_le_bytes();
    }
    let mut stored = vec![0; ROWS * dtype.row_bytes(COLS)];
    quantize(compute, Matrix::new(DType::F32, ROWS, COLS, &floats), dtype, &mut stored);
    stored
}

fn main() {
    let mut args = std::env::args().skip(1);
    let dtype: DType = args.next().map_or(DType::BF16, |d| d.parse().expect("DTYPE"));
    let in_out = args.next().is_some_and(|op| op == "in_out");
    let compute = Compute::new(args.next().map(|threads| threads.parse().expect("THREADS")));
    println!("{} on {} threads, {dtype}: time of a bitmap ÷ dense (GB/s of both)", compute.isa(), compute.threads());
    println!("density bytes  {}", [1, 2, 4, 8, 16, 64, 512].map(|m| format!("{m:>18}")).join(""));
    let (k, n) = if in_out { (ROWS, COLS) } else { (COLS, ROWS) };
    for density in DENSITIES {
        let dense = weights(&compute, dtype, density);
        let packed = pack(&compute, Matrix::new(dtype, ROWS, COLS, &dense));
        let copies = WORKING_SET / (dense.len() + packed.bitmap().bytes());
        let dense: Vec<Vec<u8>> = vec![dense; copies];
        let packed: Vec<PackedBitmap> = vec![packed; copies];
        let bitmaps: Vec<Bitmap> = packed.iter().map(PackedBitmap::bitmap).collect();
        let bytes = [bitmaps[0].bytes(), dense[0].len()].map(|bytes| bytes as f64);
        let cells = [1, 2, 4, 8, 16, 64, 512].map(|m| {
            let x: Vec<f32> = (0..m * k).map(|i| (i % 17) as f32 / 16.0 - 0.5).collect();
            let mut outs = [(); 2].map(|()| vec![0.0; m * n]);
            let rounds = if m > 64 { ROUNDS / 4 } else { ROUNDS };
            let times: Vec<[f64; 2]> = (0..rounds)
                .map(|i| {
                    let forms: [Stored; 2] =
                        [bitmaps[i % copies].into(), Matrix::new(dtype, ROWS, COLS, &dense[i % copies]).into()];
                    [0, 1].map(|form| {
                        let (weights, out) = (forms[form], &mut outs[form]);
                        seconds(|| match in_out {
                            true => compute.linear_in_out(&x, m, None, &mut [LinearPart { weights, bias: None, out }]),
                            false => compute.linear(&x, m, &mut [LinearPart { weights, bias: None, out }]),
                        })
                    })
                })
                .collect();
            let size = outs[1].iter().fold(0.0f32, |a, v| a.max(v.abs()));
            let close = |(a, b): (&f32, &f32)| (a - b).abs() <= 0.01 * size;
            assert!(outs[0].iter().zip(&outs[1]).all(close), "both must compute the same");
            let rate = |form: usize| bytes[form] / median(times.iter().map(|t| t[form]).collect()) / 1e9;
            let ratio = median(times.iter().map(|t| t[0] / t[1]).collect());
            format!("{ratio:>7.2} ({:>3.0}, {:>3.0})", rate(0), rate(1))
        });
        println!("{density:>7} {:>5.2}  {}", bytes[0] / bytes[1], cells.join(" "));
    }
}
