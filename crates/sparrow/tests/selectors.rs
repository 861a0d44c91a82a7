//! Each selector against what it is defined to be, computed another way.

mod common;
mod tiny;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use common::*;
use sparrow::checkpoint::Tensor;
use sparrow::sparsify::{Goal, SparsifyOptions, Stage, sparsify};
use sparrow::sparsity::{
    InputMoments, Method, Observer, Overlap, Point, Predictor, Selection, Selector, SkippedBlocks, Threshold,
};
use sparrow::{DType, Error, Model, SelectorSpec};
use sparrow_kernels::{DType as Stored, encode};

/// Between two ways through the same f32 kernels.
const SAME: f64 = 2e-5;

const TOKENS: usize = 20;

fn low_rank(model: &Model, look_ahead: bool, rule: Threshold) -> Selector {
    let (hidden, layers) = (model.spec.hidden_size, model.spec.num_layers);
    let identity: Vec<f64> = (0..hidden * hidden).map(|i| f64::from(i % (hidden + 1) == 0)).collect();
    let predictor = |l: usize| {
        let gate = model.weights.layers[l].mlp.gate.as_ref().unwrap();
        Predictor::closed_form(gate, &moments(&identity), 8).unwrap()
    };
    Selector::low_rank((0..layers).map(predictor).collect(), look_ahead, vec![rule; layers])
}

/// A selector by its text, `lowrank` with predictors made here and `ahead` looking ahead with these.
fn ready(model: &mut Model, text: &str) -> Selector {
    let (name, rule) = text.split_once(':').unwrap();
    match name {
        "lowrank" | "ahead" => {
            model.prepare(&parse("forced:active=1,overlap=1"), &cpu()).unwrap();
            low_rank(model, name == "ahead", rule.parse().unwrap())
        }
        _ => model.prepare(&parse(text), &cpu()).unwrap(),
    }
}

#[test]
fn keeping_everything_is_dense_bit_for_bit() {
    for dtype in [DType::F32, DType::BF16] {
        for text in [
            "gate:fixed=-1",
            "gate:quantile=0",
            "lowrank:fixed=-1",
            "ahead:quantile=0",
            "sign:fixed=-2",
            "input:fixed=-1",
            "input:quantile=0",
            "forced:active=1,overlap=0.5",
        ] {
            for calls in [vec![TOKENS], vec![3, 9, 1, 7]] {
                let mut model = random_model(&odd_spec(), dtype, 5);
                let selector = ready(&mut model, text);
                let model = Arc::new(model);
                let ids = Random::new(3).ids(model.spec.vocab_size, TOKENS);
                let run = |selector| prefill_in(&mut session(&cpu(), &model, selector, 1, None), 0, &ids, &calls);
                let (dense, sparse) = (run(Selector::dense()), run(selector));
                assert!(sparse == dense, "{dtype}, {text}, {calls:?}: {:e} apart", worst_difference(&sparse, &dense));
            }
        }
    }
}

#[test]
fn a_batch_gives_each_sequence_what_it_has_alone() {
    for text in
        ["gate:quantile=0.6", "lowrank:quantile=0.7", "ahead:mean-std=0.4", "sign:quantile=0.5", "input:quantile=0.4"]
    {
        let mut model = random_model(&odd_spec(), DType::F32, 11);
        let selector = ready(&mut model, text);
        let model = Arc::new(model);
        let vocab = model.spec.vocab_size;
        let ids: Vec<Vec<u32>> = (0..8).map(|s| Random::new(s).ids(vocab, 6)).collect();
        let mut batched = session(&exact(), &model, selector, 8, Some(DType::F32));
        let mut together: Vec<Vec<Vec<f32>>> = vec![Vec::new(); 8];
        #[allow(clippy::needless_range_loop)] // steps index several sequences
        for t in 0..6 {
            // 1, 3 or 8 rows: the first sequences run ahead, which must not matter.
            for group in [0..1, 1..4, 4..8] {
                let tokens: Vec<(usize, u32)> = group.clone().map(|s| (s, ids[s][t])).collect();
                let logits = batched.decode(&tokens).unwrap().to_vec();
                logits.chunks_exact(vocab).zip(group).for_each(|(l, s)| together[s].push(l.to_vec()));
            }
        }
        let everyone: Vec<(usize, u32)> = (0..8).map(|s| (s, 1)).collect();
        let last = batched.decode(&everyone).unwrap().to_vec();
        for (s, row) in last.chunks_exact(vocab).enumerate() {
            together[s].push(row.to_vec());
            batched.truncate(s, 0);
            let alone = decode_each(&mut batched, s, &[&ids[s][..], &[1]].concat());
            let worst = worst_difference(&together[s], &alone);
            assert!(worst < SAME, "{text}, sequence {s}: {worst:e}");
        }
    }
}

/// A skipped block is one that adds zero.
#[test]
fn skipping_is_adding_nothing() {
    let zero =
        |tensor: &Tensor| Tensor::in_memory(tensor.dtype(), tensor.rows(), tensor.cols(), |out| out.fill(0)).unwrap();
    let blocks: SkippedBlocks = "attention=1,mlp=0".parse().unwrap();
    assert_eq!((blocks.attention.clone(), blocks.mlp.clone()), (BTreeSet::from([1]), BTreeSet::from([0])));
    let mut model = random_model(&odd_spec(), DType::F32, 2);
    let ids = Random::new(1).ids(model.spec.vocab_size, TOKENS);
    let selector = model.prepare(&SelectorSpec::Skip(Some(blocks)), &cpu()).unwrap();
    let mut edited = random_model(&odd_spec(), DType::F32, 2);
    edited.weights.layers[1].o.weight = zero(reference::whole(&edited.weights.layers[1].o.weight)).into();
    edited.weights.layers[0].mlp.down.weight = zero(reference::whole(&edited.weights.layers[0].mlp.down.weight)).into();
    let model = Arc::new(model);
    let mut skipping = session(&exact(), &model, selector, 1, Some(DType::F32));
    let found = prefill_in(&mut skipping, 0, &ids, &[12, 8]);
    let expected = prefill_in(
        &mut session(&exact(), &Arc::new(edited), Selector::dense(), 1, Some(DType::F32)),
        0,
        &ids,
        &[12, 8],
    );
    assert!(found == expected, "{:e}", worst_difference(&found, &expected));
    let layer = &model.weights.layers[0];
    let (attention, mlp) = (layer.attention_bytes() as f64, layer.mlp.bytes() as f64);
    let fractions = skipping.stats().active_fraction_per_layer();
    assert!((fractions[0] - attention / (attention + mlp)).abs() < 1e-9, "{fractions:?}");
    assert!((fractions[1] - mlp / (attention + mlp)).abs() < 1e-9, "{fractions:?}");

    let beyond = format!("skip:mlp={}", model.spec.num_layers);
    let message = random_model(&odd_spec(), DType::F32, 2).prepare(&parse(&beyond), &cpu()).unwrap_err().to_string();
    assert!(message.contains("layer") && message.contains("0 to"), "{message}");
}

/// The rows of both kinds of input, and the masks made from them.
#[derive(Default)]
struct Inputs {
    attention: Vec<Vec<f32>>,
    mlp: Recorder,
}

impl Observer for Inputs {
    fn see(&mut self, layer: usize, point: Point, values: &[f32], m: usize) {
        if layer == 1 && point == Point::AttentionInput {
            self.attention.extend(values.chunks_exact(values.len() / m).map(<[f32]>::to_vec));
        }
    }

    fn mlp(&mut self, layer: usize, h: &[f32], m: usize, selection: Option<&Selection>) {
        self.mlp.mlp(layer, h, m, selection);
    }
}

#[test]
fn looking_ahead_reads_the_input_of_attention() {
    let mut model = random_model(&odd_spec(), DType::F32, 8);
    let ids = Random::new(1).ids(model.spec.vocab_size, TOKENS);
    ready(&mut model, "ahead:top-k=7");
    let identity: Vec<f64> =
        (0..model.spec.hidden_size.pow(2)).map(|i| f64::from(i % (model.spec.hidden_size + 1) == 0)).collect();
    let gate = model.weights.layers[1].mlp.gate.as_ref().unwrap();
    let predictor = Predictor::closed_form(gate, &moments(&identity), 8).unwrap();
    let (a, b) = (reference::values(&predictor.a), reference::values(&predictor.b));
    let (hidden, activation) = (model.spec.hidden_size, model.spec.activation);
    let model = Arc::new(model);
    let mut seen = Inputs::default();
    // Few rows, which gather, and many, which are masked.
    for calls in [vec![TOKENS], calls_of(4, TOKENS)] {
        let selector = low_rank(&model, true, Threshold::TopK(7));
        prefill_observed(&mut session(&exact(), &model, selector, 1, None), 0, &ids, &calls, &mut seen);
    }
    for (row, z) in seen.attention.iter().enumerate() {
        let z: Vec<f64> = z.iter().map(|&v| f64::from(v)).collect();
        let low: Vec<f64> = a.chunks_exact(hidden).map(|a| reference::dot(a, &z)).collect();
        let score = |b: &[f64]| reference::activate(activation, reference::dot(b, &low)).abs();
        let mut scores: Vec<(f64, usize)> = b.chunks_exact(8).map(score).enumerate().map(|(i, s)| (s, i)).collect();
        scores.sort_by(|x, y| y.0.total_cmp(&x.0));
        if scores[6].0 - scores[7].0 < 1e-5 {
            continue;
        }
        for (rank, &(_, i)) in scores.iter().enumerate() {
            assert_eq!(seen.mlp.keeps(1, row, i), rank < 7, "row {row}, neuron {i}");
        }
    }
    assert_eq!(seen.attention.len(), 2 * TOKENS);
}

#[test]
fn signs_are_counted() {
    let mut model = random_model(&odd_spec(), DType::BF16, 8);
    let ids = Random::new(1).ids(model.spec.vocab_size, TOKENS);
    let selector = ready(&mut model, "sign:fixed=0.05");
    let gates: Vec<Vec<f64>> = model
        .weights
        .layers
        .iter()
        .map(|l| reference::values(reference::whole(&l.mlp.gate.as_ref().unwrap().weight)))
        .collect();
    let hidden = model.spec.hidden_size;
    let mut seen = Recorder::default();
    prefill_observed(&mut session(&exact(), &Arc::new(model), selector, 1, None), 0, &ids, &[TOKENS], &mut seen);
    for (layer, gate) in gates.iter().enumerate() {
        for (row, h) in seen.inputs[layer].iter().enumerate() {
            for (i, gate) in gate.chunks_exact(hidden).enumerate() {
                let same = gate.iter().zip(h).filter(|(w, h)| w.is_sign_negative() == h.is_sign_negative()).count();
                let score = (2.0 * same as f64 - hidden as f64) / hidden as f64;
                assert_eq!(seen.keeps(layer, row, i), score > 0.05, "layer {layer}, row {row}, neuron {i}: {score}");
            }
        }
    }
}

/// With both inputs known, the predictor from another input is the best linear map composed with the gate.
#[test]
fn look_ahead_predictors_regress_on_the_earlier_input() {
    use nalgebra::DMatrix;
    let (n, hidden, samples) = (20, 12, 400);
    let mut random = Random::new(5);
    let w: Vec<f32> = (0..n * hidden).map(|_| random.normal() as f32).collect();
    let weight = Tensor::in_memory(Stored::F32, n, hidden, |out| encode(Stored::F32, &w, out)).unwrap();
    let gate = sparrow::model::weights::Linear { weight: weight.into(), bias: None, input_major: false };
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
        let p = Predictor::closed_form(&gate, &moments, rank).unwrap();
        let matrix = |t: &Tensor| DMatrix::from_row_slice(t.rows(), t.cols(), &reference::values(t));
        let found = error(&(matrix(&p.b) * matrix(&p.a)));
        assert!(found < last, "rank {rank}: {found}, before {last}");
        // Error of the best map, and what its rank-r truncation in the metric of z loses.
        let root = nalgebra::Cholesky::new(&z * z.transpose() / samples as f64).unwrap().l();
        let mut singular: Vec<f64> = (&best * root).svd(false, false).singular_values.iter().copied().collect();
        singular.sort_by(|a, b| b.total_cmp(a));
        let optimum = error(&best) + singular[rank..].iter().map(|s| s * s).sum::<f64>();
        assert!((found / optimum - 1.0).abs() < 0.01, "rank {rank}: {found}, optimum {optimum}");
        last = found;
    }
}

#[test]
fn overlap_counts_neurons_that_stay_active() {
    let mut model = demo();
    let selector = model.prepare(&parse("forced:active=0.1,overlap=0.8"), &cpu()).unwrap();
    let (layers, neurons) = (model.spec.num_layers, model.spec.intermediate_size);
    let mut overlap = Overlap::new(layers, neurons);
    let mut session = session(&cpu(), &Arc::new(model), selector, 1, None);
    session.observe(0, &sample_ids()[..100], &mut overlap).unwrap();
    assert!(overlap.per_layer().iter().all(|o| (o - 0.8).abs() < 0.01), "{:?}", overlap.per_layer());
}

fn options(selector: &str) -> SparsifyOptions {
    SparsifyOptions { window: 64, max_tokens: 3000, ..SparsifyOptions::new(parse(selector), 24) }
}

/// Killed in the middle of training and started again, the result is the one of a run in one go.
#[test]
fn interrupted_training_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let text = demo_dir().join("sample.txt");
    let options = SparsifyOptions { epochs: 2, goal: Some(Goal::Recall(0.9)), ..options("lowrank") };
    let run = |name: &str, stop: Option<u64>| {
        let epochs = AtomicU64::new(0);
        let count = |stage, done, _| {
            if stage == Stage::Training {
                assert!(stop != Some(done), "stopped on purpose");
                epochs.fetch_add(1, Relaxed);
            }
        };
        let made = sparsify(&demo_dir(), &dir.path().join(name), &text, &options, &cpu(), count);
        (made.unwrap().file.method, epochs.load(Relaxed))
    };
    let (expected, all) = run("whole", None);
    let stopped = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run("parts", Some(5))));
    assert!(stopped.is_err() && !dir.path().join("parts").exists());
    assert!(dir.path().join("parts.training").exists());
    let (found, rest) = run("parts", None);
    assert_eq!((all, rest), (10, 5), "epochs trained");
    assert_eq!(found, expected);
    assert!(matches!(found, Method::LowRank { epochs: 2, .. }));
    assert!(!dir.path().join("parts.training").exists());
    let read = |name: &str| std::fs::read(dir.path().join(name).join("sparrow.safetensors")).unwrap();
    assert!(read("whole") == read("parts"), "predictors differ");
}

/// Of a SiLU model, telling neurons apart is not what counts: sizes matter, and the closed form ranks by them.
#[test]
fn training_that_does_not_help_is_not_kept() {
    let Some(model) = shared_data("models/stories260k") else { return };
    let Some(text) = shared_data("text/tinystories.txt") else { return };
    let dir = tempfile::tempdir().unwrap();
    let options = SparsifyOptions { epochs: 1, ..options("lowrank") };
    let made = sparsify(&model, &dir.path().join("out"), &text, &options, &cpu(), |_, _, _| ()).unwrap();
    assert!(matches!(made.file.method, Method::LowRank { epochs: 0, .. }), "{:?}", made.file.method);
    assert!(Model::load(&dir.path().join("out")).unwrap().sidecar.unwrap().predictors.iter().all(|p| !p.logits));
}

#[test]
fn a_search_keeps_the_quality_it_was_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let text = demo_dir().join("sample.txt");
    for (name, goal) in [("ppl", Goal::Perplexity(0.02)), ("kl", Goal::Divergence(0.01))] {
        let options = SparsifyOptions { goal: Some(goal), ..options("lowrank") };
        let made = sparsify(&demo_dir(), &dir.path().join(name), &text, &options, &cpu(), |_, _, _| ()).unwrap();
        let trials = &made.file.search;
        assert!(trials.len() >= 6 && trials.iter().any(|t| t.accepted) && trials.iter().any(|t| !t.accepted));
        for t in trials {
            let good = match goal {
                Goal::Perplexity(rise) => t.perplexity <= t.dense_perplexity * (1.0 + rise),
                _ => t.kl_mean <= 0.01,
            };
            assert_eq!(t.accepted, good, "{t:?}");
        }
    }
}

#[test]
fn input_calibration_reaches_its_fraction_and_beats_one_sparsity_for_all() {
    let dir = tempfile::tempdir().unwrap();
    let text = demo_dir().join("sample.txt");
    let options = SparsifyOptions { goal: Some(Goal::Active(0.5)), ..options("input") };
    let made = sparsify(&demo_dir(), &dir.path().join("input"), &text, &options, &cpu(), |_, _, _| ()).unwrap();
    let calibrated = made.file.quality.evaluation;
    assert!((calibrated.active_fraction - 0.5).abs() < 0.08, "{calibrated:?}");
    let mut model = demo();
    let uniform = model.prepare(&parse("input:quantile=0.5"), &cpu()).unwrap();
    let model = Arc::new(model);
    let ids = sample_ids();
    let held_out = &ids[ids.len().min(3000) - calibrated.tokens..ids.len().min(3000)];
    let mut dense = session(&cpu(), &model, Selector::dense(), 1, None);
    let mut sparse = session(&cpu(), &model, uniform, 1, None);
    let uniform = sparrow::eval::evaluate(&mut dense, &mut sparse, held_out, 64, &mut (), |_| ()).unwrap();
    println!("KL calibrated {:.3}, uniform {:.3}", calibrated.kl_mean, uniform.kl_mean);
    assert!(calibrated.kl_mean < uniform.kl_mean, "{calibrated:?} {uniform:?}");
}

#[test]
fn activations_that_are_not_numbers_are_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let model = dir.path().join("model");
    std::fs::create_dir(&model).unwrap();
    tiny::write_model(&model);
    let mut file = tiny::TensorFile::new(&tiny::tensors());
    let offsets = file.header["model.layers.0.input_layernorm.weight"]["data_offsets"].clone();
    let at = offsets[0].as_u64().unwrap() as usize;
    file.data[at..at + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(model.join("model.safetensors"), file.bytes()).unwrap();
    let text = dir.path().join("text.txt");
    std::fs::write(&text, "w3 w4 w5 w6 ".repeat(60)).unwrap();
    for selector in ["gate", "lowrank", "sign", "input", "skip"] {
        let options = SparsifyOptions { rank: 2, window: 16, ..options(selector) };
        let error = sparsify(&model, &dir.path().join("out"), &text, &options, &cpu(), |_, _, _| ()).unwrap_err();
        assert!(
            matches!(error, Error::Option { .. }) && error.to_string().contains("not finite"),
            "{selector}: {error}"
        );
        assert!(!dir.path().join("out").exists());
    }
}
