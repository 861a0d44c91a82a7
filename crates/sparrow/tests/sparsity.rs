//! Contextual sparsity on the demo model: what selectors keep, what that costs, and the way from a dense directory to a
//! sparse one.

mod common;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use common::reference::{activate, dot, linear, values};
use common::*;
use nalgebra::{Cholesky, DMatrix};
use serde_json::{Value, json};
use sparrow::checkpoint::Tensor;
use sparrow::eval::{Evaluation, evaluate};
use sparrow::generate::{GenerateOptions, generate};
use sparrow::model::weights::Linear;
use sparrow::sparsify::{Goal, SparsifyOptions, sparsify};
use sparrow::sparsity::{Observer, Predictor, Recall, Selection, Selector, SidecarFile, Threshold, is_relu_family};
use sparrow::{Cpu, DType, Error, Model, SelectorSpec, Session, Tokenizer};
use sparrow_kernels::{Activation, encode};

/// Between two ways through the same f32 kernels.
const SAME: f64 = 2e-5;

const WINDOW: usize = 128;

fn sample_path() -> PathBuf {
    demo_dir().join("sample.txt")
}

/// A small SiLU model beside the ReLU one: its activations have a sign and no zeros.
fn models() -> [(&'static str, Model); 2] {
    [("demo", demo()), ("silu", random_model(&odd_spec(), DType::BF16, 7))]
}

fn evaluate_on(cpu: &Arc<Cpu>, model: &Arc<Model>, selector: Selector, ids: &[u32]) -> Evaluation {
    let mut dense = session(cpu, model, Selector::dense(), 1, None);
    let mut sparse = session(cpu, model, selector, 1, None);
    evaluate(&mut dense, &mut sparse, ids, WINDOW, &mut (), |_| ()).unwrap()
}

#[test]
fn gate_is_lossless() {
    let ids = sample_ids();
    for cpu in [cpu(), exact()] {
        let (model, selector) = prepare(demo(), SelectorSpec::Gate(None));
        let mut dense = session(&cpu, &model, Selector::dense(), 1, None);
        let mut sparse = session(&cpu, &model, selector, 1, None);
        for prompt in [&ids[..4], &ids[100..120], &ids[500..501]] {
            dense.truncate(0, 0);
            sparse.truncate(0, 0);
            sparse.reset_stats();
            assert_eq!(greedy(&mut sparse, 0, prompt, 64), greedy(&mut dense, 0, prompt, 64), "prompt {prompt:?}");
            let active = sparse.stats().active_fraction();
            assert!(active <= 0.2, "{active} active while generating");
        }
        let evaluation = evaluate(&mut dense, &mut sparse, &ids, WINDOW, &mut (), |_| ()).unwrap();
        assert!(evaluation.kl_mean < 1e-6 && evaluation.kl_p99 < 1e-6, "{evaluation:?}");
        assert_eq!(evaluation.top1_agreement, 1.0);
        assert!(evaluation.active_fraction <= 0.15, "{} active on sample.txt", evaluation.active_fraction);
    }
}

/// Prompts compute every neuron, so only decoding token by token shows what gathering the active ones costs: rounding,
/// of sums in another order. A bf16 cache turns some of it into flips of its last bit, so single tokens are held to the
/// bound with an f32 cache, and the mean with either.
#[test]
fn gate_is_lossless_where_neurons_are_gathered() {
    let ids = sample_ids();
    let (model, _) = prepare(demo(), SelectorSpec::Gate(None));
    for kv_dtype in [DType::F32, DType::BF16] {
        let gate = Selector::gate(vec![Threshold::Fixed(0.0); model.spec.num_layers]);
        let mut dense = session(&cpu(), &model, Selector::dense(), 1, Some(kv_dtype));
        let mut sparse = session(&cpu(), &model, gate, 1, Some(kv_dtype));
        let (mut divergences, mut differs) = (Vec::new(), false);
        for window in ids.chunks(WINDOW) {
            dense.truncate(0, 0);
            sparse.truncate(0, 0);
            for &id in window {
                let p = dense.decode(&[(0, id)]).unwrap();
                let q = sparse.decode(&[(0, id)]).unwrap();
                differs |= p != q;
                divergences.push(kl_divergence(p, q));
            }
        }
        let mean = divergences.iter().sum::<f64>() / divergences.len() as f64;
        let max = divergences.iter().copied().fold(0.0, f64::max);
        println!("{kv_dtype} cache: KL of {} decoded tokens: mean {mean:.1e}, max {max:.1e}", divergences.len());
        assert!(differs, "the dense path was compared with itself");
        assert!(mean < 1e-6, "{kv_dtype} cache: mean KL {mean}");
        assert!(max < 1e-6 || kv_dtype == DType::BF16, "{kv_dtype} cache: largest KL {max}");
        assert!(sparse.stats().active_fraction() <= 0.15);
    }
}

/// Logits of eight texts after each token, decoded side by side in batches of `batch`.
fn decoded_in_batches(model: &Arc<Model>, texts: &[Vec<u32>], batch: usize, rule: Threshold) -> Vec<Vec<Vec<f32>>> {
    let vocab = model.spec.vocab_size;
    let mut out = Vec::new();
    for texts in texts.chunks(batch) {
        let selector = Selector::gate(vec![rule; model.spec.num_layers]);
        let mut session = session(&exact(), model, selector, batch, Some(DType::F32));
        let mut logits = vec![Vec::new(); texts.len()];
        for position in 0..texts[0].len() {
            let tokens: Vec<_> = texts.iter().enumerate().map(|(s, text)| (s, text[position])).collect();
            let step = session.decode(&tokens).unwrap();
            logits.iter_mut().zip(step.chunks_exact(vocab)).for_each(|(l, row)| l.push(row.to_vec()));
        }
        out.extend(logits);
    }
    out
}

#[test]
fn a_neuron_counts_only_for_the_rows_that_selected_it() {
    const LEN: usize = 20;
    // Far fewer than are active, so that counting another row's neurons too would show.
    let rule = Threshold::TopK(25);
    let (model, _) = prepare(demo(), SelectorSpec::Gate(None));
    let ids = sample_ids();
    let texts: Vec<Vec<u32>> = ids.chunks_exact(LEN).take(8).map(<[u32]>::to_vec).collect();
    let alone = decoded_in_batches(&model, &texts, 1, rule);

    let prefill = |calls: &[usize], selector: Selector| {
        let mut session = session(&exact(), &model, selector, 8, Some(DType::F32));
        (0..8).map(|s| prefill_in(&mut session, s, &texts[s], calls)).collect::<Vec<_>>()
    };
    let gate = || Selector::gate(vec![rule; model.spec.num_layers]);
    for (what, found) in [
        ("batches of 3", decoded_in_batches(&model, &texts, 3, rule)),
        ("a batch of 8", decoded_in_batches(&model, &texts, 8, rule)),
        ("prefill as a whole", prefill(&[LEN], gate())),
        ("prefill by 7", prefill(&calls_of(7, LEN), gate())),
    ] {
        // A score within rounding of the threshold may fall on either side: that can happen to one text, not to two.
        let different = (0..8).filter(|&s| worst_difference(&found[s], &alone[s]) > SAME).count();
        assert!(different <= 1, "{what}: {different} of 8 texts differ from each alone");
    }
    // The comparison can tell: the dense model is another function.
    let dense = prefill(&[LEN], Selector::dense());
    assert!((0..8).all(|s| worst_difference(&dense[s], &alone[s]) > 100.0 * SAME));
}

#[test]
fn keeping_everything_is_dense() {
    for (name, model) in models() {
        let tokens = Random::new(1).ids(model.spec.vocab_size, 30);
        let calls = [12, 3, 8, 1, 1, 5];
        let predictors = predictors(&model, &identity(model.spec.hidden_size), 4);
        let (model, _) = prepare(model, parse("gate:fixed=-1"));
        let layers = model.spec.num_layers;
        let dense = prefill_in(&mut session(&exact(), &model, Selector::dense(), 1, None), 0, &tokens, &calls);
        for rule in ["fixed=-1", "quantile=0", "top-k=1000000", "mean-std=-1000"] {
            let rule: Threshold = rule.parse().unwrap();
            // A predicted ReLU gate is compared with its sign: no fixed threshold lets every one through but a very low one.
            let low = if rule == Threshold::Fixed(-1.0) { Threshold::Fixed(-1e9) } else { rule };
            for selector in
                [Selector::gate(vec![rule; layers]), Selector::low_rank(predictors.clone(), false, vec![low; layers])]
            {
                let mut session = session(&exact(), &model, selector, 1, None);
                let found = prefill_in(&mut session, 0, &tokens, &calls);
                let worst = worst_difference(&found, &dense);
                // Default caches are bf16, where a difference in rounding is 2⁻⁸ of a value.
                assert!(worst < 5e-3, "{name}, {rule}: {worst:.1e} from dense");
                assert_eq!(session.stats().active_fraction(), 1.0, "{name}, {rule}");
            }
        }
    }
}

fn identity(n: usize) -> Vec<f64> {
    (0..n * n).map(|i| f64::from(i % (n + 1) == 0)).collect()
}

fn predictors(model: &Model, covariance: &[f64], rank: usize) -> Vec<Predictor> {
    let gates = model.weights.layers.iter().map(|l| l.mlp.gate.as_ref().unwrap());
    gates.map(|gate| Predictor::closed_form(gate, &moments(covariance), rank).unwrap()).collect()
}

/// The rule on one row of scores, by sorting. Returns which are kept, and how far each is from changing sides.
fn naive_mask(rule: Threshold, scores: &[f64]) -> (Vec<bool>, Vec<f64>) {
    let n = scores.len();
    let mut sorted = scores.to_vec();
    sorted.sort_by(|a, b| b.total_cmp(a));
    let at_least = |keep: usize| match keep.min(n) {
        0 => (f64::INFINITY, true),
        keep => (sorted[keep - 1], true),
    };
    let (threshold, inclusive) = match rule {
        Threshold::Fixed(t) => (f64::from(t), false),
        // The only case is 0.9.
        Threshold::Sparsity(_) => return naive_mask(Threshold::MeanStd(1.281_551_6), scores),
        Threshold::MeanStd(k) => {
            let mean = scores.iter().sum::<f64>() / n as f64;
            let variance = scores.iter().map(|s| (s - mean).powi(2)).sum::<f64>() / n as f64;
            (mean + f64::from(k) * variance.sqrt(), false)
        }
        Threshold::TopK(k) => at_least(k),
        Threshold::Quantile(q) => at_least(((1.0 - f64::from(q)) * n as f64).round() as usize),
    };
    let kept = scores.iter().map(|&s| s > threshold || (inclusive && s == threshold)).collect();
    (kept, scores.iter().map(|s| (s - threshold).abs()).collect())
}

#[test]
fn threshold_rules_keep_what_they_say() {
    let rules = [
        "fixed=0",
        "fixed=0.07",
        "mean-std=0.5",
        "mean-std=-0.2",
        "sparsity=0.9",
        "top-k=1",
        "top-k=33",
        "quantile=0.93",
        "quantile=0.5",
    ];
    for (name, model) in models() {
        let n = model.spec.intermediate_size;
        let predictors = predictors(&model, &identity(model.spec.hidden_size), 12);
        let relu = is_relu_family(model.spec.activation);
        let (model, _) = prepare(model, parse("gate:fixed=0"));
        let layers = model.spec.num_layers;
        let tokens = Random::new(3).ids(model.spec.vocab_size, 17);
        for rule in rules {
            let rule: Threshold = rule.parse().unwrap();
            for low_rank in [false, true] {
                let selector = match low_rank {
                    false => Selector::gate(vec![rule; layers]),
                    true => Selector::low_rank(predictors.clone(), false, vec![rule; layers]),
                };
                let what = format!("{name}, {rule}, lowrank {low_rank}");
                let mut seen = Recorder::default();
                let mut session = session(&exact(), &model, selector, 1, None);
                prefill_observed(&mut session, 0, &tokens, &[11, 1, 5], &mut seen);
                let (mut naive_active, mut unclear) = (0, 0);
                for (layer, predictor) in predictors.iter().enumerate() {
                    assert_eq!(seen.inputs[layer].len(), tokens.len());
                    let gate = model.weights.layers[layer].mlp.gate.as_ref().unwrap();
                    for (row, h) in seen.inputs[layer].iter().enumerate() {
                        let h: Vec<f64> = h.iter().map(|&v| f64::from(v)).collect();
                        let mut scores = match low_rank {
                            false => linear(gate, &h),
                            true => predicted(predictor, &h),
                        };
                        if !(low_rank && relu) {
                            scores.iter_mut().for_each(|s| *s = activate(model.spec.activation, *s).abs());
                        }
                        let (kept, distance) = naive_mask(rule, &scores);
                        let scale = scores.iter().fold(0.0f64, |m, s| m.max(s.abs()));
                        for i in 0..n {
                            naive_active += usize::from(kept[i]);
                            if seen.keeps(layer, row, i) != kept[i] {
                                assert!(distance[i] < 1e-5 * scale, "{what}, layer {layer}, row {row}, neuron {i}");
                                unclear += 1;
                            }
                        }
                    }
                }
                let all = layers * tokens.len() * n;
                assert!(unclear * 1000 < all, "{what}: {unclear} of {all} are within rounding of the threshold");
                let counted = seen.active_fraction(n);
                assert!((counted - naive_active as f64 / all as f64).abs() < 1e-3, "{what}: {counted} active");
                let stats = session.stats();
                assert!((counted - stats.active_fraction()).abs() < 1e-12, "{what}: {counted} counted, stats differ");
                assert_eq!(stats.active_fraction_per_layer().len(), layers);
                assert_eq!(stats.steps, 3);
            }
        }
    }
}

fn predicted(predictor: &Predictor, h: &[f64]) -> Vec<f64> {
    let (a, b) = (values(&predictor.a), values(&predictor.b));
    let low: Vec<f64> = a.chunks_exact(h.len()).map(|row| dot(row, h)).collect();
    b.chunks_exact(low.len()).zip(&predictor.bias).map(|(row, &bias)| dot(row, &low) + f64::from(bias)).collect()
}

/// E[h·hᵀ] of each layer's MLP input.
struct Covariance {
    sums: Vec<Vec<f64>>,
    rows: usize,
}

impl Observer for Covariance {
    fn mlp(&mut self, layer: usize, h: &[f32], m: usize, _: Option<&Selection>) {
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
    let (model, _) = prepare(demo(), SelectorSpec::Gate(None));
    let (hidden, layers) = (model.spec.hidden_size, model.spec.num_layers);
    let ids = sample_ids();
    let mut covariance = Covariance { sums: vec![vec![0.0; hidden * hidden]; layers], rows: 0 };
    let mut dense = session(&exact(), &model, Selector::dense(), 1, None);
    for ids in ids.chunks(WINDOW).take(8) {
        dense.truncate(0, 0);
        dense.observe(0, ids, &mut covariance).unwrap();
    }
    let mut recalls = Vec::new();
    for rank in [hidden, 32, 4] {
        let predictor = |(l, sums): (usize, &Vec<f64>)| {
            let covariance: Vec<f64> = sums.iter().map(|s| s / covariance.rows as f64).collect();
            Predictor::closed_form(model.weights.layers[l].mlp.gate.as_ref().unwrap(), &moments(&covariance), rank)
                .unwrap()
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
            sparse.truncate(0, 0);
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
            let predictor = Predictor::closed_form(&gate, &moments(&row_major(&c)), rank).unwrap();
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
            let blind = Predictor::closed_form(&gate, &moments(&identity(hidden)), rank).unwrap();
            assert!(error < expected_error(&w, &product(&blind), &c) + stored);
        }
    }
}

#[test]
fn closed_form_of_few_samples_is_exact_on_them() {
    let (gate, w, c) = problem(40, 24, 6);
    let predictor = Predictor::closed_form(&gate, &moments(&row_major(&c)), 8).unwrap();
    let total = expected_error(&w, &DMatrix::zeros(40, 24), &c);
    let error = expected_error(&w, &product(&predictor), &c);
    assert!(error < 1e-6 * total, "{error} of {total}");
    let nothing = Predictor::closed_form(&gate, &moments(&vec![0.0; 24 * 24]), 8).unwrap();
    assert!(product(&nothing).iter().all(|v| v.is_finite()));
}

#[test]
fn impossible_predictors_are_refused() {
    let (gate, _, c) = problem(16, 24, 100);
    for rank in [0, 17, 24, usize::MAX] {
        let message = Predictor::closed_form(&gate, &moments(&row_major(&c)), rank).unwrap_err().to_string();
        assert!(message.contains("rank") && message.contains("1..=16"), "{message}");
    }
    for bad in [f64::NAN, f64::INFINITY] {
        let mut c = row_major(&c);
        c[5] = bad;
        let message = Predictor::closed_form(&gate, &moments(&c), 4).unwrap_err().to_string();
        assert!(message.contains("not finite"), "{message}");
    }
}

#[test]
fn forced_masks_are_as_asked() {
    for (active, overlap) in [(0.1, 0.9), (0.25, 0.0), (0.1, 0.5), (0.5, 1.0), (0.0, 0.5), (1.0, 0.5)] {
        let (model, selector) = prepare(demo(), SelectorSpec::Forced { active, overlap });
        let n = model.spec.intermediate_size;
        let keep = (f64::from(active) * n as f64).round();
        let mut seen = Recorder::default();
        let mut session = session(&exact(), &model, selector, 1, None);
        let tokens = Random::new(0).ids(model.spec.vocab_size, 60);
        prefill_observed(&mut session, 0, &tokens, &[1; 60], &mut seen);
        for masks in &seen.masks {
            let masks: Vec<&Vec<u64>> = masks.iter().map(|m| m.as_ref().unwrap()).collect();
            let count = |m: &[u64]| f64::from(m.iter().map(|w| w.count_ones()).sum::<u32>());
            assert!(masks.iter().all(|m| count(m) == keep), "active {active}");
            for pair in masks.windows(2) {
                let both: Vec<u64> = pair[0].iter().zip(pair[1]).map(|(a, b)| a & b).collect();
                let expected = keep * f64::from(overlap);
                let at_least = 2.0 * keep - n as f64; // two large sets overlap whatever was asked
                assert!((count(&both) - expected.max(at_least)).abs() <= 1.0, "active {active}, overlap {overlap}");
            }
            assert!(overlap == 1.0 || active == 0.0 || active == 1.0 || masks[0] != masks[40], "the sets must move on");
        }
        assert_eq!(session.stats().active_fraction(), keep / n as f64);
    }
    for (active, overlap, field) in [(1.1, 0.5, "active"), (-0.1, 0.5, "active"), (0.1, f32::NAN, "overlap")] {
        let message = demo().prepare(&SelectorSpec::Forced { active, overlap }, &cpu()).unwrap_err().to_string();
        assert!(message.contains(field), "{message}");
    }
}

#[test]
fn selectors_that_need_calibration_say_so() {
    for (name, mut model) in models() {
        let message = model.prepare(&SelectorSpec::LowRank(None), &cpu()).unwrap_err().to_string();
        assert!(message.contains("sparrow sparsify"), "{name}: {message}");
        let gate = model.prepare(&SelectorSpec::Gate(None), &cpu());
        assert_eq!(gate.is_ok(), name == "demo", "only exact zeros need no calibration");
        assert_eq!(model.default_selector(), SelectorSpec::Dense);
    }
}

fn options(selector: &str) -> SparsifyOptions {
    let goal = (selector == "lowrank").then_some(Goal::Recall(0.98));
    SparsifyOptions { goal, window: 64, max_tokens: 1 << 20, ..SparsifyOptions::new(parse(selector), 48) }
}

fn sparsified(dir: &Path, selector: &str) -> (PathBuf, SidecarFile) {
    let out = dir.join(selector.replace([':', '='], "-"));
    let made = sparsify(&demo_dir(), &out, &sample_path(), &options(selector), &cpu(), |_, _, _| ()).unwrap();
    (out, made.file)
}

#[test]
fn a_sparsified_directory_runs_as_it_was_measured() {
    let dir = tempfile::tempdir().unwrap();
    let ids = sample_ids();
    let tokenizer = Tokenizer::load(&demo_dir()).unwrap();
    for (selector, default) in [("gate", "gate"), ("lowrank", "lowrank"), ("lowrank:mean-std=1", "lowrank")] {
        let (out, file) = sparsified(dir.path(), selector);
        let mut model = Model::load(&out).unwrap();
        let read = &model.sidecar.as_ref().unwrap().file;
        // Measured figures are compared below: reading decimal digits may move their last bit.
        assert_eq!(SidecarFile { quality: file.quality.clone(), ..read.clone() }, file);
        assert_eq!(model.default_selector(), parse(default));
        assert!(model.weights.layers.iter().all(|l| l.mlp.down.input_major));
        assert_eq!(file.method.selector(), parse(default));
        let thresholds = file.method.neuron_thresholds().unwrap();
        assert_eq!(thresholds.len(), model.spec.num_layers);
        if selector.contains(':') {
            assert!(thresholds.iter().all(|&t| t == Threshold::MeanStd(1.0)));
        }

        // The dense function is the original's, and the written quality is what the loaded model has.
        let prepared = model.prepare(&model.default_selector(), &cpu()).unwrap();
        let model = Arc::new(model);
        let original = Arc::new(demo());
        let same = |model: &Arc<Model>| {
            prefill_in(&mut session(&exact(), model, Selector::dense(), 1, Some(DType::F32)), 0, &ids[..40], &[40])
        };
        assert!(worst_difference(&same(&model), &same(&original)) < SAME);
        let mut dense = session(&cpu(), &model, Selector::dense(), 1, None);
        let mut sparse = session(&cpu(), &model, prepared, 1, None);
        let held_out = &ids[file.calibration.tokens..];
        let found = evaluate(&mut dense, &mut sparse, held_out, 64, &mut (), |_| ()).unwrap();
        let written = &file.quality.evaluation;
        assert_eq!(found.tokens, written.tokens);
        for (found, written) in [
            (found.perplexity, written.perplexity),
            (found.dense_perplexity, written.dense_perplexity),
            (found.active_fraction, written.active_fraction),
        ] {
            assert!((found / written - 1.0).abs() < 1e-3, "{selector}: {found}, written {written}");
        }
        assert!(written.active_fraction < 0.6, "{selector}: {} active", written.active_fraction);
        for quality in &file.quality.selection {
            match selector {
                "gate" => assert_eq!((quality.recall, quality.precision), (1.0, 1.0)),
                "lowrank" => assert!(quality.recall > 0.85, "{quality:?}"),
                _ => {}
            }
        }

        // The sparse directory writes text.
        sparse.truncate(0, 0);
        let mut text = String::new();
        let settings = GenerateOptions { max_new_tokens: 24, ..GenerateOptions::default() };
        let prompt = tokenizer.encode("Once upon a time", true).unwrap();
        let tokenizer = Tokenizer::load(&out).unwrap();
        let generated = generate(&mut sparse, 0, &tokenizer, &prompt, &settings, |piece| {
            text.push_str(piece);
            Ok(())
        })
        .unwrap();
        assert!(!generated.ids.is_empty() && !text.trim().is_empty());
        if selector == "gate" {
            dense.truncate(0, 0);
            assert_eq!(generated.ids, greedy(&mut dense, 0, &prompt, generated.ids.len()));
        }
    }
    assert_eq!(entries(dir.path()), ["gate", "lowrank", "lowrank-mean-std-1"], "nothing temporary is left");

    // What is there is never overwritten, and a sparse model is no model to start from.
    let out = dir.path().join("gate");
    let message = refused(&demo_dir(), &out, &sample_path(), &options("gate"));
    assert!(message.contains("already exists"), "{message}");
    let message = refused(&out, &dir.path().join("twice"), &sample_path(), &options("gate"));
    assert!(message.contains("already sparsified"), "{message}");
    assert_eq!(entries(dir.path()).len(), 3);
}

fn refused(model: &Path, out: &Path, text: &Path, options: &SparsifyOptions) -> String {
    sparsify(model, out, text, options, &cpu(), |_, _, _| ()).unwrap_err().to_string()
}

fn entries(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        std::fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_refused_sparsify_leaves_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let (short, binary) = (dir.path().join("short.txt"), dir.path().join("binary.txt"));
    std::fs::write(&short, "Too few words.").unwrap();
    std::fs::write(&binary, [0xff, 0xfe, 0x00]).unwrap();
    let (out, sample) = (dir.path().join("out"), sample_path());
    let with = |change: fn(&mut SparsifyOptions)| {
        let mut options = options("lowrank");
        change(&mut options);
        options
    };
    for (text, options, words) in [
        (&short, with(|_| ()), vec!["text", "too few"]),
        (&sample, with(|o| o.max_tokens = 10), vec!["text", "too few"]),
        (&sample, with(|o| o.max_tokens = 0), vec!["text", "too few"]),
        (&sample, with(|o| o.window = 1), vec!["window of 1"]),
        (&binary, with(|_| ()), vec!["binary.txt"]),
        (&dir.path().join("absent.txt"), with(|_| ()), vec!["absent.txt"]),
        (&sample, with(|o| o.rank = 0), vec!["rank", "1..=", "found 0"]),
        (&sample, with(|o| o.rank = 100_000), vec!["rank", "1..=", "found 100000"]),
        (&sample, with(|o| o.goal = Some(Goal::Recall(0.0))), vec!["recall"]),
        (&sample, with(|o| o.goal = Some(Goal::Recall(1.5))), vec!["recall"]),
        (&sample, with(|o| o.goal = Some(Goal::Active(f64::NAN))), vec!["target_active"]),
        (&sample, with(|o| o.goal = Some(Goal::Perplexity(-0.1))), vec!["target_ppl"]),
        (&sample, with(|o| o.goal = Some(Goal::Divergence(f64::INFINITY))), vec!["target_kl"]),
        (&sample, with(|o| o.selector = parse("gate")), vec!["recall", "lowrank"]),
        (&sample, with(|o| o.selector = parse("lowrank:fixed=0")), vec!["lowrank:fixed=0", "goal"]),
        (&sample, with(|o| o.selector = parse("skip:mlp=1")), vec!["skip:mlp=1", "no calibration"]),
        (&sample, with(|o| (o.selector, o.goal, o.epochs) = (parse("sign"), None, 1)), vec!["epochs", "lowrank"]),
        (&sample, with(|o| o.selector = SelectorSpec::Dense), vec!["selector", "dense"]),
    ] {
        let message = refused(&demo_dir(), &out, text, &options);
        assert!(words.iter().all(|w| message.contains(w)), "{message:?} should name {words:?}");
        assert_eq!(entries(dir.path()), ["binary.txt", "short.txt"], "after {message}");
    }
    let message = refused(&dir.path().join("no-model"), &out, &sample, &options("gate"));
    assert!(message.contains("no-model"), "{message}");
    assert_eq!(entries(dir.path()), ["binary.txt", "short.txt"]);
}

#[test]
fn a_sidecar_that_does_not_fit_is_refused_by_field() {
    let dir = tempfile::tempdir().unwrap();
    let (gate, _) = sparsified(dir.path(), "gate");
    let (low_rank, _) = sparsified(dir.path(), "lowrank");
    let read = |dir: &Path| -> Value {
        serde_json::from_str(&std::fs::read_to_string(dir.join("sparrow.json")).unwrap()).unwrap()
    };
    let load_with = |dir: &Path, json: &Value| {
        let path = dir.join("sparrow.json");
        let before = std::fs::read(&path).unwrap();
        std::fs::write(&path, json.to_string()).unwrap();
        let result = Model::load(dir);
        std::fs::write(&path, before).unwrap();
        result.map(|_| ())
    };
    let edited = |dir: &Path, field: &str, value: Value| {
        let mut json = read(dir);
        json[field] = value;
        load_with(dir, &json)
    };
    let check = |what: &str, result: Result<(), Error>, field: &str| {
        let message = result.expect_err(what).to_string();
        assert!(message.contains(field) && message.contains("sparrow.json"), "{what}: {message:?} names no {field}");
    };

    assert!(load_with(&gate, &read(&gate)).is_ok(), "unchanged content loads");
    let layers = read(&gate)["method"]["gate"]["thresholds"].as_array().unwrap().clone();
    let thresholds = |value: Value| json!({ "gate": { "thresholds": value } });
    let with_first = |threshold: Value| {
        let mut layers = layers.clone();
        layers[0] = threshold;
        thresholds(Value::from(layers))
    };
    for (field, value) in [
        ("format_version", json!(1)),
        ("format_version", json!("2")),
        ("format_version", Value::Null),
        ("fingerprint", json!("0123")),
        ("fingerprint", json!(7)),
        ("method", json!("best")),
        ("method", json!({ "best": {} })),
        ("method", json!({ "gate": {} })),
        ("method", json!({ "gate": { "thresholds": layers, "rank": 8 } })),
        ("thresholds", thresholds(json!(layers[1..]))),
        ("thresholds", thresholds(json!([]))),
        ("thresholds", thresholds(json!("none"))),
        ("thresholds", with_first(json!({ "fixed": "much" }))),
        ("thresholds", with_first(json!({ "fixed": null }))),
        ("thresholds", with_first(json!({ "median": 1 }))),
        ("thresholds", with_first(json!({ "quantile": -3.0 }))),
        ("thresholds", with_first(json!({ "quantile": 1.5 }))),
        ("thresholds", with_first(json!({ "sparsity": 1.0 }))),
        ("thresholds", with_first(json!({ "top-k": 0 }))),
        ("thresholds", with_first(json!({ "fixed": 1e300 }))),
        ("thresholds", json!({ "input": { "thresholds": [vec![0.0; 7]] } })),
        ("thresholds", json!({ "input": { "thresholds": vec![vec![-1.0; 7]; layers.len()] } })),
        ("method", json!({ "skip": { "attention": [1], "mlp": [4000] } })),
        ("true_active_above", json!([0.0])),
        ("calibration", json!({})),
        ("quality", Value::Null),
        ("colour", json!("red")),
    ] {
        let edit = if field == "thresholds" { "method" } else { field };
        check(&format!("gate, {field} = {value}"), edited(&gate, edit, value.clone()), field);
    }
    let with_rank = |rank: Value| {
        let mut method = read(&low_rank)["method"].clone();
        method["lowrank"]["rank"] = rank;
        edited(&low_rank, "method", method)
    };
    for rank in [Value::Null, json!(0), json!(1u64 << 40)] {
        check(&format!("rank {rank}"), with_rank(rank), "rank");
    }
    // Another rank is another shape of tensor.
    let message = with_rank(json!(7)).unwrap_err().to_string();
    assert!(message.contains("sparrow.safetensors") && message.contains("predictor"), "{message}");

    // A sidecar beside another model's weights.
    let other = dir.path().join("other");
    std::fs::create_dir(&other).unwrap();
    for entry in std::fs::read_dir(demo_dir()).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, other.join(path.file_name().unwrap())).unwrap();
    }
    std::fs::copy(gate.join("sparrow.json"), other.join("sparrow.json")).unwrap();
    check("another model", Model::load(&other).map(|_| ()), "fingerprint");
    std::fs::remove_file(low_rank.join("sparrow.safetensors")).unwrap();
    let message = Model::load(&low_rank).unwrap_err().to_string();
    assert!(message.contains("sparrow.safetensors"), "{message}");
}

#[test]
fn evaluation_refuses_what_it_cannot_score() {
    let (model, _) = prepare(demo(), SelectorSpec::Gate(None));
    let new = || -> Session { session(&cpu(), &model, Selector::dense(), 1, None) };
    let (mut a, mut b) = (new(), new());
    assert!(evaluate(&mut a, &mut b, &[1], 8, &mut (), |_| ()).unwrap_err().to_string().contains("text"));
    assert!(evaluate(&mut a, &mut b, &[1, 2], 1, &mut (), |_| ()).unwrap_err().to_string().contains("window"));
    let mut other = session(&cpu(), &Arc::new(random_model(&odd_spec(), DType::F32, 1)), Selector::dense(), 1, None);
    let message = evaluate(&mut other, &mut a, &[1, 2], 8, &mut (), |_| ()).unwrap_err().to_string();
    assert_eq!(message, "reference: has a vocabulary of 101, the model it is compared with one of 2048");
    let same = evaluate_on(&cpu(), &model, Selector::dense(), &sample_ids()[..100]);
    assert_eq!((same.tokens, same.kl_mean, same.top1_agreement, same.active_fraction), (99, 0.0, 1.0, 1.0));
    assert_eq!(same.perplexity, same.dense_perplexity);
}
