//! Activations, norms, sums, rotary embedding and softmax of every available tier against `f64`.

use crate::support::*;
use sparrow_kernels::*;

#[test]
fn activations() {
    let grid: Vec<f32> = (-4000..4000).map(|i| i as f32 * 0.011).collect();
    let special = [0.0, f32::NAN, f32::INFINITY, 1e-30, -1e-30, 80.0, -80.0, 1e4, -1e4];
    for compute in tiers_to_test() {
        for a in Activation::ALL {
            for n in EDGES.into_iter().chain([8000]) {
                let x: Vec<f32> = special.iter().chain(&grid).copied().take(n).collect();
                let up: Vec<f32> = x.iter().rev().map(|v| v * 0.5).collect();
                let mut got = x.clone();
                compute.activate(a, &mut got);
                let mut gated = vec![f32::NAN; x.len()];
                compute.gated(a, &x, &up, &mut gated);
                for i in 0..x.len() {
                    let want = activation(a, f64::from(x[i]));
                    let size = if a == Activation::ReluSquared { x[i] * x[i] } else { x[i].abs() };
                    let tolerance = f64::from(size) * 8.0 * U + 1e-37;
                    let context = || format!("{a:?}({}) {}", x[i], describe(&compute));
                    assert_close(got[i], want, tolerance, &context);
                    assert_close(a.apply(x[i]), want, tolerance, &context);
                    let up = if a == Activation::DoubleRelu && up[i] < 0.0 { 0.0 } else { up[i] };
                    assert!(gated[i] == got[i] * up || (got[i] * up).is_nan() && gated[i].is_nan());
                }
            }
            // An infinity gives the same as the scalar tier.
            let mut x = [f32::NEG_INFINITY; 40];
            compute.activate(a, &mut x);
            let want = a.apply(f32::NEG_INFINITY);
            assert!(x.iter().all(|v| *v == want || v.is_nan() && want.is_nan()), "{a:?}(-inf) {x:?}");
        }
    }
}

#[test]
fn norms_sums_and_rope() {
    let mut random = Random(5);
    for compute in tiers_to_test() {
        for n in EDGES.into_iter().skip(1).chain([5000]) {
            for rows in [0, 1, 3] {
                let (x, weight, bias) = (random.values(rows * n), random.values(n), random.values(n));
                let mut out = vec![f32::NAN; rows * n];
                let context = || format!("n={n} rows={rows} {}", describe(&compute));
                let relative = (n as f64 / 32.0 + 16.0) * U;
                compute.rms_norm(&x, &weight, 1.0, 1e-5, &mut out);
                for (r, row) in x.chunks_exact(n).enumerate() {
                    let squares: f64 = row.iter().map(|&v| f64::from(v).powi(2)).sum();
                    let scale = 1.0 / (squares / n as f64 + f64::from(1e-5f32)).sqrt();
                    for i in 0..n {
                        let want = f64::from(row[i]) * scale * (f64::from(weight[i]) + 1.0);
                        let tolerance = relative * f64::from(row[i]).abs() * scale * 2.0;
                        assert_close(out[r * n + i], want, tolerance, &|| format!("rms_norm {}", context()));
                    }
                }
                compute.layer_norm(&x, &weight, Some(&bias), 1e-3, &mut out);
                for (r, row) in x.chunks_exact(n).enumerate() {
                    let mean = row.iter().map(|&v| f64::from(v)).sum::<f64>() / n as f64;
                    let variance = row.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / n as f64;
                    let scale = 1.0 / (variance + f64::from(1e-3f32)).sqrt();
                    for i in 0..n {
                        let want = (f64::from(row[i]) - mean) * scale * f64::from(weight[i]) + f64::from(bias[i]);
                        let tolerance = 4.0 * relative * (scale + 1.0);
                        assert_close(out[r * n + i], want, tolerance, &|| format!("layer_norm {}", context()));
                    }
                }
                let mut plain = vec![f32::NAN; rows * n];
                compute.layer_norm(&x, &weight, None, 1e-3, &mut plain);
                for i in 0..rows * n {
                    assert!((plain[i] + bias[i % n] - out[i]).abs() < 1e-5);
                }
                let y = random.values(rows * n);
                let mut sum = x.clone();
                compute.add_assign(&mut sum, &y);
                assert!(sum.iter().zip(&x).zip(&y).all(|((s, a), b)| *s == a + b));
            }
        }
        for (rows, heads, head_dim, rotary) in
            [(0, 1, 2, 2), (1, 1, 2, 2), (3, 2, 64, 64), (2, 3, 80, 32), (2, 1, 34, 34), (65, 4, 64, 48), (1, 2, 3, 0)]
        {
            let x = random.values(rows * heads * head_dim);
            let (cos, sin) = (random.values(rows * rotary / 2), random.values(rows * rotary / 2));
            let mut out = x.clone();
            compute.rope(&mut out, heads, head_dim, &cos, &sin, rotary);
            for (h, (got, x)) in out.chunks_exact(head_dim).zip(x.chunks_exact(head_dim)).enumerate() {
                let (row, half) = (h / heads, rotary / 2);
                for i in 0..head_dim {
                    let angle = |i: usize| (f64::from(cos[row * half + i]), f64::from(sin[row * half + i]));
                    let at = |i: usize| f64::from(x[i]);
                    let want = if i < half {
                        at(i) * angle(i).0 - at(i + half) * angle(i).1
                    } else if i < rotary {
                        at(i) * angle(i - half).0 + at(i - half) * angle(i - half).1
                    } else {
                        at(i)
                    };
                    assert_close(got[i], want, 4.0 * U, &|| format!("rope {}", describe(&compute)));
                }
            }
        }
    }
}

#[test]
fn softmax_and_argmax() {
    let mut random = Random(6);
    for compute in tiers_to_test() {
        for n in EDGES.into_iter().chain([32003]) {
            let x: Vec<f32> = random.values(n).iter().map(|v| v * 20.0).collect();
            let mut got = x.clone();
            compute.softmax(&mut got);
            let max = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let sum: f64 = x.iter().map(|&v| f64::from(v - max).exp()).sum();
            for i in 0..n {
                let want = f64::from(x[i] - max).exp() / sum;
                let tolerance = (n as f64 / 32.0 + 24.0) * U * want + 1e-37;
                assert_close(got[i], want, tolerance, &|| format!("softmax n={n} {}", describe(&compute)));
            }
            if n == 0 {
                assert_eq!(compute.argmax(&x), 0);
                continue;
            }
            let best = x.iter().position(|&v| v == max).unwrap();
            assert_eq!(compute.argmax(&x), best);
            let mut x = x;
            x[n - 1] = max;
            assert_eq!(compute.argmax(&x), best.min(n - 1));
            let at = random.below(n);
            x[at] = f32::NAN;
            let want = (0..n).filter(|&i| !x[i].is_nan()).max_by(|&a, &b| x[a].total_cmp(&x[b]).then(b.cmp(&a)));
            assert_eq!(compute.argmax(&x), want.unwrap_or(0));
            compute.softmax(&mut x);
            assert!(x.iter().all(|v| v.is_nan()), "softmax with NaN at {at} of {n}");
            assert_eq!(compute.argmax(&x), 0);
            let mut x = vec![f32::NEG_INFINITY; n];
            compute.softmax(&mut x);
            assert!(x.iter().all(|v| v.is_nan()));
            let mut x = vec![f32::NEG_INFINITY; n];
            x[n / 2] = -5.0;
            assert_eq!(compute.argmax(&x), n / 2);
            compute.softmax(&mut x);
            assert_eq!(x[n / 2], 1.0);
        }
    }
}
