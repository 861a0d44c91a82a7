//! Linear layers of every available tier against `f64`: all element types, sizes around every block edge, weights at
//! odd addresses, NaN and infinity.

use crate::support::*;
use sparrow_kernels::*;

/// The activations that a product with weights of `dtype` `[out, in]` sees: for quantised weights they are rounded row by
/// row; beyond 8 of them, the AMX tier rounds x to bf16 for weights of bf16 and of codes, beyond `few` AVX512-BF16 for bf16.
/// The reference sees the same.
fn as_seen(compute: &Compute, dtype: DType, m: usize, few: usize, x: &[f32]) -> Vec<f32> {
    let in_bf16 = m > 8
        && match dtype {
            DType::F32 | DType::F16 | DType::I8 => false,
            DType::BF16 => compute.isa() == Isa::Amx || compute.isa() == Isa::Avx512Bf16 && m > few,
            _ => compute.isa() == Isa::Amx,
        };
    if !in_bf16 && dtype.is_quantized() {
        return x.chunks((x.len() / m.max(1)).max(1)).flat_map(quantized).collect();
    }
    if !in_bf16 {
        return x.to_vec();
    }
    let mut bytes = vec![0; 2 * x.len()];
    encode(DType::BF16, x, &mut bytes);
    let mut rounded = vec![0.0; x.len()];
    decode(DType::BF16, &bytes, &mut rounded);
    rounded
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
    let seen = as_seen(compute, dtype, m, 16, &x);
    let steps = if m > 8 { k as f64 } else { k as f64 / 8.0 };
    for (w, out, bias) in [(&w, &out, Some(&bias)), (&v, &second, None)] {
        for t in 0..m {
            for j in 0..w.rows {
                let b = bias.map_or(0.0, |b| f64::from(b[j]));
                let (mut want, mut size) = (b, b.abs());
                for i in 0..k {
                    let x = f64::from(seen[t * k + i]);
                    want += w.at(j, i) * x;
                    size += w.size(j, i) * x.abs();
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
        // Types that are only read share their loops with these.
        for dtype in DType::ALL.into_iter().filter(|dtype| dtype.is_writable()) {
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

#[test]
fn every_quantised_type() {
    let mut random = Random(15);
    for compute in tiers_to_test() {
        for dtype in DType::ALL.into_iter().filter(|dtype| dtype.is_quantized()) {
            // Chunks, spans and what is left of either; few activations and many.
            for (m, n, k) in [(1, 3, 33), (2, 1, 257), (5, 5, 64), (1, 7, 600), (9, 50, 255), (17, 19, 513)] {
                check_linear(&compute, dtype, m, n, k, &mut random);
                check_in_out(&compute, dtype, m, n, k, m % 2 == 0, &mut random);
            }
        }
    }
}

/// The relative error of weights that a product rounds: the AMX tier rounds codes to bf16 beyond 8 activations.
fn weights_rounded(compute: &Compute, dtype: DType, m: usize) -> f64 {
    let codes = dtype.is_quantized() && dtype != DType::I8;
    if codes && m > 8 && compute.isa() >= Isa::Amx { 2f64.powi(-8) } else { 0.0 }
}

/// x as products with int8 weights `[in, out]` see it beyond 8 activations with vectors: times the scale of the input, the
/// `used` ones quantised row by row.
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
    compute.linear_in_out(
        &x,
        m,
        inputs,
        &mut [LinearPart { weights: w.matrix().into(), bias: Some(&bias), out: &mut out }],
    );
    let all: Vec<u32> = (0..k as u32).collect();
    let used = inputs.unwrap_or(&all);
    let seen = match dtype {
        DType::I8 if m > 8 && compute.isa() > Isa::Scalar => scaled_and_quantized(&w, &x, used),
        _ if dtype.is_quantized() && (m <= 8 || compute.isa() < Isa::Amx) => x.clone(),
        _ => as_seen(compute, dtype, m, 8, &x),
    };
    // x times the scales is rounded to 16 bits by eight inputs: to half a step, times the largest code.
    let rounded: Vec<f64> = (0..m)
        .map(|t| {
            let by_integers = match dtype {
                DType::I8 => m <= 8 && compute.isa() >= Isa::Avx512,
                _ => dtype.is_quantized() && compute.isa() > Isa::Scalar,
            };
            if !by_integers {
                return 0.0;
            }
            let by_eight = |eight: &[u32]| {
                let largest = |&i: &u32| f64::from(x[t * k + i as usize].abs()) * w.largest_size(i as usize);
                eight.len() as f64 * eight.iter().map(largest).fold(0.0, f64::max) / 65024.0
            };
            used.chunks(8).map(by_eight).sum()
        })
        .collect();
    for t in 0..m {
        for j in 0..n {
            let (mut want, mut size) = (f64::from(bias[j]), f64::from(bias[j]).abs());
            for &i in used {
                let x = f64::from(seen[t * k + i as usize]);
                want += w.at(i as usize, j) * x;
                size += w.size(i as usize, j) * x.abs();
            }
            let tolerance = ((used.len() + 2) as f64 * U + weights_rounded(compute, dtype, m)) * size + rounded[t];
            assert_close(out[t * n + j], want, tolerance, &|| {
                format!("linear_in_out {dtype} m={m} k={k} n={n} [{t}, {j}] {}", describe(compute))
            });
        }
    }
    // Either way round activations are rounded from another number on.
    let one_rounds = compute.isa() == Isa::Avx512Bf16 && dtype == DType::BF16 && (9..=16).contains(&m);
    if inputs.is_none() && !dtype.is_quantized() && !one_rounds {
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
        for dtype in DType::ALL.into_iter().filter(|dtype| dtype.is_writable()) {
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

#[test]
fn weights_that_share_their_inputs_give_what_each_gives_alone() {
    let mut random = Random(23);
    for compute in tiers_to_test() {
        for dtype in DType::ALL.into_iter().filter(|dtype| dtype.is_writable()) {
            for (m, k, sparse) in [(1, 700, true), (1, 700, false), (3, 900, true), (1, 40, true), (10, 300, true)] {
                let parts: Vec<_> = [96, 33, 33, 260]
                    .map(|n| (Sample::random(dtype, k, n, &mut random), random.values(n), vec![f32::NAN; m * n]))
                    .into();
                let ids: Vec<u32> = (0..k as u32).filter(|_| random.below(3) > 0).collect();
                let (x, inputs) = (random.values(m * k), sparse.then_some(&ids[..]));
                let run = |parts: &mut [(Sample, Vec<f32>, Vec<f32>)]| {
                    let mut parts: Vec<LinearPart> = parts
                        .iter_mut()
                        .map(|(w, bias, out)| LinearPart { weights: w.matrix().into(), bias: Some(bias), out })
                        .collect();
                    compute.linear_in_out(&x, m, inputs, &mut parts);
                };
                let mut together = parts;
                run(&mut together);
                let outs: Vec<Vec<f32>> = together.iter().map(|(.., out)| out.clone()).collect();
                for (part, out) in together.iter_mut().zip(outs) {
                    part.2.fill(f32::NAN);
                    run(std::slice::from_mut(part));
                    assert!(
                        out.iter().all(|v| v.is_finite()) && out == part.2,
                        "{dtype} m={m} k={k} {}",
                        describe(&compute)
                    );
                }
            }
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
                    compute.linear_in_out(
                        &x,
                        m,
                        None,
                        &mut [LinearPart { weights: w.matrix().into(), bias: None, out: &mut out }],
                    );
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
fn special_inputs_reach_all_outputs_of_quantised_weights_kept_by_inputs() {
    let mut random = Random(31);
    for compute in tiers_to_test() {
        for dtype in DType::ALL.into_iter().filter(|dtype| dtype.is_quantized()) {
            let (m, k, n) = (2, 21, 70);
            let w = Sample::random(dtype, k, n, &mut random);
            for special in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut x = random.values(m * k);
                x[k + random.below(k)] = special;
                let mut out = vec![0.0; m * n];
                compute.linear_in_out(
                    &x,
                    m,
                    None,
                    &mut [LinearPart { weights: w.matrix().into(), bias: None, out: &mut out }],
                );
                let (first, second) = out.split_at(n);
                assert!(first.iter().all(|v| v.is_finite()), "{dtype} {special} {}", describe(&compute));
                // A code of 0 times infinity is NaN, or in integers too.
                assert!(second.iter().all(|v| !v.is_finite()), "{dtype} {special} {}", describe(&compute));
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
                // All activations are the largest, of code ±32512: the sum is exact, and rounded when it is scaled.
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
