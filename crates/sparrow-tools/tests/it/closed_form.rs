//! Predictors in closed form: the best of their rank.

use nalgebra::{Cholesky, DMatrix};
use sparrow::internals::backend::{ActiveNeurons, Observer, Predictor, Threshold};
use sparrow::internals::tensor::Tensor;
use sparrow::internals::weights::Linear;
use sparrow::{DType, Selector};
use sparrow_kernels::{Activation, encode};
use sparrow_testing::reference::values;
use sparrow_testing::*;
use sparrow_tools::calibrate::{InputMoments, closed_form};
use sparrow_tools::observe::Recall;

const WINDOW: usize = 128;

/// E[h·hᵀ] of each layer's MLP input.
struct Covariance {
    sums: Vec<Vec<f64>>,
    rows: usize,
}

impl Observer for Covariance {
    fn mlp(&mut self, layer: usize, h: &[f32], m: usize, _: Option<ActiveNeurons>) {
        let hidden = h.len() / m;
        for h in h.chunks_exact(hidden) {
            for (sums, &a) in self.sums[layer].chunks_exact_mut(hidden).zip(h) {
                sums.iter_mut().zip(h).for_each(|(s, &b)| *s += f64::from(a) * f64::from(b));
            }
        }
        self.rows += if layer == 0 { m } else { 0 };
    }
}

#[test]
fn low_rank_finds_the_active_neurons_as_well_as_its_rank_allows() {
    let (model, _) = prepare(demo(), parse("gate"));
    let (hidden, layers) = (model.spec.hidden_size, model.spec.num_layers);
    let ids = sample_ids();
    let mut covariance = Covariance { sums: vec![vec![0.0; hidden * hidden]; layers], rows: 0 };
    let mut dense = session(&exact(), &model, Selector::dense(), 1, None);
    for ids in ids.chunks(WINDOW).take(8) {
        dense.truncate(0, 0).unwrap();
        dense.observe(0, ids, &mut covariance).unwrap();
    }
    let mut recalls = Vec::new();
    for rank in [hidden, 32, 4] {
        let predictor = |(l, sums): (usize, &Vec<f64>)| {
            let covariance: Vec<f64> = sums.iter().map(|s| s / covariance.rows as f64).collect();
            closed_form(model.weights.layers[l].mlp.deciding(), &moments(&covariance), rank).unwrap()
        };
        let predictors: Vec<Predictor> = covariance.sums.iter().enumerate().map(predictor).collect();
        assert!(predictors.iter().all(|p| p.rank() == rank));
        let bytes = (rank * (hidden + model.spec.intermediate_size) * 2) as u64;
        assert!(predictors.iter().all(|p| p.bytes() == bytes));
        let selector = Selector::low_rank(predictors, false, vec![Threshold::Fixed(0.0); layers]);
        let mut sparse = session(&exact(), &model, selector, 1, None);
        let truth = vec![0.0; layers];
        let cpu = exact();
        let mut recall = Recall::new(&cpu, &model.weights.layers, Activation::Relu, &truth);
        sparse.observe(0, &ids[..WINDOW], &mut recall).unwrap();
        let per_layer = recall.per_layer();
        if rank == hidden {
            for (layer, quality) in per_layer.iter().enumerate() {
                assert!(quality.recall > 0.99 && quality.precision > 0.99, "layer {layer}: {quality:?}");
            }
            let mut seen = Recorder::default();
            sparse.truncate(0, 0).unwrap();
            sparse.observe(0, &ids[..WINDOW], &mut seen).unwrap();
            let truly = per_layer.iter().map(|q| q.true_active_fraction).sum::<f64>() / layers as f64;
            assert!((seen.active_fraction(model.spec.intermediate_size) - truly).abs() < 0.01);
        }
        recalls.push(per_layer.iter().map(|q| q.recall).sum::<f64>() / layers as f64);
    }
    println!("recall at full rank, 32 and 4: {recalls:.3?}");
    assert!(recalls[0] > recalls[1] && recalls[1] > recalls[2], "recall must fall with the rank: {recalls:?}");
}

/// A random gate `[n, hidden]` with its values, and the second moment of `samples` random inputs of uneven directions.
fn problem(n: usize, hidden: usize, samples: usize) -> (Linear, DMatrix<f64>, DMatrix<f64>) {
    let mut random = Random::new((n * hidden) as u64);
    let w: Vec<f32> = (0..n * hidden).map(|_| random.normal() as f32).collect();
    let weight = Tensor::in_memory(DType::F32, n, hidden, |out| encode(DType::F32, &w, out)).unwrap();
    let w = DMatrix::from_row_iterator(n, hidden, w.into_iter().map(f64::from));
    let mix = DMatrix::from_fn(hidden, hidden, |_, j| random.normal() * 0.8f64.powi(j as i32));
    let x = mix * DMatrix::from_fn(hidden, samples, |_, _| random.normal());
    let c = &x * x.transpose() / samples as f64;
    (Linear { weight: weight.into(), bias: None, input_major: false }, w, c)
}

/// tr((W − W')·C·(W − W')ᵀ) = E‖W·x − W'·x‖².
fn expected_error(w: &DMatrix<f64>, approximation: &DMatrix<f64>, c: &DMatrix<f64>) -> f64 {
    let d = w - approximation;
    (&d * c * d.transpose()).trace()
}

fn row_major(m: &DMatrix<f64>) -> Vec<f64> {
    m.transpose().iter().copied().collect()
}

fn product(p: &Predictor) -> DMatrix<f64> {
    let matrix = |t: &Tensor| DMatrix::from_row_slice(t.rows(), t.cols(), &values(t));
    matrix(&p.b) * matrix(&p.a)
}

#[test]
fn closed_form_is_the_best_predictor_of_its_rank() {
    for (n, hidden) in [(40, 24), (24, 40)] {
        let (gate, w, c) = problem(n, hidden, 200);
        // Another factor of C than the engine takes, and another decomposition.
        let whitened = &w * Cholesky::new(c.clone()).unwrap().l();
        let mut singular: Vec<f64> = whitened.svd(false, false).singular_values.iter().copied().collect();
        singular.sort_by(|a, b| b.total_cmp(a));
        let total: f64 = singular.iter().map(|s| s * s).sum();
        for rank in [1, 3, 10, 20] {
            let tail: f64 = singular[rank..].iter().map(|s| s * s).sum();
            let predictor = closed_form(&gate, &moments(&row_major(&c)), rank).unwrap();
            let error = expected_error(&w, &product(&predictor), &c);
            // The factors are stored as f16: each output is off by about 2⁻¹¹ of its size.
            let stored = total * 2f64.powi(-20);
            assert!((error - tail).abs() < 0.01 * tail + stored, "{n}×{hidden}, rank {rank}: {error}, optimum {tail}");

            let mut random = Random::new(rank as u64);
            for _ in 0..10 {
                let u = DMatrix::from_fn(n, rank, |_, _| random.normal()).qr().q();
                let worse = expected_error(&w, &(&u * (u.transpose() * &w)), &c);
                assert!(error < worse, "rank {rank}: a random projection has {worse}, the predictor {error}");
            }
            // Ignoring which inputs occur costs something.
            let blind = closed_form(&gate, &moments(&identity(hidden)), rank).unwrap();
            assert!(error < expected_error(&w, &product(&blind), &c) + stored);
        }
    }
}

#[test]
fn closed_form_of_few_samples_is_exact_on_them() {
    let (gate, w, c) = problem(40, 24, 6);
    let predictor = closed_form(&gate, &moments(&row_major(&c)), 8).unwrap();
    let total = expected_error(&w, &DMatrix::zeros(40, 24), &c);
    let error = expected_error(&w, &product(&predictor), &c);
    assert!(error < 1e-6 * total, "{error} of {total}");
    let nothing = closed_form(&gate, &moments(&vec![0.0; 24 * 24]), 8).unwrap();
    assert!(product(&nothing).iter().all(|v| v.is_finite()));
}

#[test]
fn impossible_predictors_are_refused() {
    let (gate, _, c) = problem(16, 24, 100);
    for rank in [0, 17, 24, usize::MAX] {
        let message = closed_form(&gate, &moments(&row_major(&c)), rank).unwrap_err().to_string();
        assert!(message.contains("rank") && message.contains("1..=16"), "{message}");
    }
    for bad in [f64::NAN, f64::INFINITY] {
        let mut c = row_major(&c);
        c[5] = bad;
        let message = closed_form(&gate, &moments(&c), 4).unwrap_err().to_string();
        assert!(message.contains("not finite"), "{message}");
    }
}

/// With both inputs known, the predictor from another input is the best linear map composed with the gate.
#[test]
fn look_ahead_predictors_regress_on_the_earlier_input() {
    let (n, hidden, samples) = (20, 12, 400);
    let mut random = Random::new(5);
    let w: Vec<f32> = (0..n * hidden).map(|_| random.normal() as f32).collect();
    let weight = Tensor::in_memory(DType::F32, n, hidden, |out| encode(DType::F32, &w, out)).unwrap();
    let gate = Linear { weight: weight.into(), bias: None, input_major: false };
    let w = DMatrix::from_row_iterator(n, hidden, w.into_iter().map(f64::from));
    let z = DMatrix::from_fn(hidden, samples, |i, _| random.normal() * 0.7f64.powi(i as i32));
    let mix = DMatrix::from_fn(hidden, hidden, |_, _| random.normal());
    let x = &mix * &z + DMatrix::from_fn(hidden, samples, |_, _| 0.3 * random.normal());
    let row_major = |m: DMatrix<f64>| -> Vec<f64> { m.transpose().iter().copied().collect() };
    let moments = InputMoments {
        predictor: row_major(&z * z.transpose() / samples as f64),
        cross: Some(row_major(&x * z.transpose() / samples as f64)),
    };
    let error = |map: &DMatrix<f64>| (&w * &x - map * &z).norm_squared() / samples as f64;
    let best = &w * (&x * z.transpose()) * (&z * z.transpose()).try_inverse().unwrap();
    let mut last = f64::INFINITY;
    for rank in [2, 5, hidden] {
        let p = closed_form(&gate, &moments, rank).unwrap();
        let matrix = |t: &Tensor| DMatrix::from_row_slice(t.rows(), t.cols(), &values(t));
        let found = error(&(matrix(&p.b) * matrix(&p.a)));
        assert!(found < last, "rank {rank}: {found}, before {last}");
        // Error of the best map, and what its rank-r truncation in the metric of z loses.
        let root = Cholesky::new(&z * z.transpose() / samples as f64).unwrap().l();
        let mut singular: Vec<f64> = (&best * root).svd(false, false).singular_values.iter().copied().collect();
        singular.sort_by(|a, b| b.total_cmp(a));
        let optimum = error(&best) + singular[rank..].iter().map(|s| s * s).sum::<f64>();
        assert!((found / optimum - 1.0).abs() < 0.01, "rank {rank}: {found}, optimum {optimum}");
        last = found;
    }
}
