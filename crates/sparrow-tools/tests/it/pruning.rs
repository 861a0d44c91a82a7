//! Pruning whole models: against an independent calculation, interrupted, and refused.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sparrow::internals::tensor::Tensor;
use sparrow::internals::weights::LayerWeights;
use sparrow::{Cpu, KvOptions, Model, Result, Selector, Session, SessionOptions, Tokenizer};
use sparrow_testing::reference::{ATTENTION, DOWN, MLP, OUTPUT};
use sparrow_testing::*;
use sparrow_tools::eval::evaluate;
use sparrow_tools::prune::{Allocation, Method, Pattern, PruneOptions, PruningRecord, Target, prune};
use sparrow_tools::text::windows;

use crate::interrupted::{files, interrupted};

const WINDOW: usize = 32;

fn options(method: Method, target: Target) -> PruneOptions {
    PruneOptions { window: WINDOW, max_tokens: 110, ..PruneOptions::new(method, target) }
}

fn half(method: Method) -> PruneOptions {
    options(method, Target::Sparsity(0.5))
}

fn text() -> PathBuf {
    demo_dir().join("sample.txt")
}

fn prune_demo(out: &Path, options: &PruneOptions, cpu: &Arc<Cpu>) -> Result<PruningRecord> {
    prune(&demo_dir(), out, &text(), options, cpu, |_, _, _| ())
}

/// The matrices of a layer, and what each reads.
fn matrices(layer: &LayerWeights) -> [(&Tensor, usize); 7] {
    let mlp = &layer.mlp;
    [
        (&layer.q, ATTENTION),
        (&layer.k, ATTENTION),
        (&layer.v, ATTENTION),
        (&layer.o, OUTPUT),
        (mlp.gate.as_ref().unwrap(), MLP),
        (&mlp.up, MLP),
        (&mlp.down, DOWN),
    ]
    .map(|(linear, input)| (linear.weight.dense().unwrap(), input))
}

/// The tiny model with random f32 weights: no rounding, and no weights of equal size.
fn write_random_model(dir: &Path) {
    tiny::write_model(dir);
    let (mut file, mut random) = (tiny::TensorFile::new(&tiny::tensors()), Random::new(5));
    file.data.as_chunks_mut().0.iter_mut().for_each(|value| *value = (random.normal() as f32).to_le_bytes());
    tiny::write(&dir.join("model.safetensors"), file.bytes());
}

#[test]
fn wanda_drops_what_an_independent_calculation_drops() {
    let dir = tempfile::tempdir().unwrap();
    let (source, out, text) = (dir.path().join("source"), dir.path().join("out"), dir.path().join("text"));
    std::fs::create_dir(&source).unwrap();
    write_random_model(&source);
    let words = Random::new(6).ids(tiny::VOCAB, 110);
    tiny::write(&text, words.iter().map(|w| format!("w{w} ")).collect::<String>());
    prune(&source, &out, &text, &half(Method::Wanda), &exact(), |_, _, _| ()).unwrap();
    let (original, mut model) = (load(&source), load(&source));
    let pruned = Arc::into_inner(load(&out).weights).unwrap();
    let seen = &words[..110 - 11];
    for (l, after) in pruned.layers.into_iter().enumerate() {
        let mut squares = [(); 4].map(|()| Vec::new());
        for window in seen.chunks(WINDOW) {
            reference::inputs(&model, window, &mut |layer, which, x| {
                if layer == l {
                    squares[which].resize(x.len(), 0.0);
                    squares[which].iter_mut().zip(x).for_each(|(sum, x)| *sum += x * x);
                }
            });
        }
        let before = &original.weights.layers[l];
        for ((before, input), (after, _)) in matrices(before).into_iter().zip(matrices(&after)) {
            let (before, after, n) = (reference::values(before), reference::values(after), before.cols());
            for (before, after) in before.chunks(n).zip(after.chunks(n)) {
                let score = |j: usize| before[j].abs() * squares[input][j].sqrt();
                let mut sorted: Vec<f64> = (0..n).map(score).collect();
                sorted.sort_by(f64::total_cmp);
                let threshold = (sorted[n / 2 - 1] + sorted[n / 2]) / 2.0;
                assert_eq!(after.iter().filter(|w| **w == 0.0).count(), n / 2);
                for j in 0..n {
                    assert!(after[j] == 0.0 || after[j] == before[j]);
                    // Single precision against double.
                    let (low, high) = (threshold * (1.0 - 1e-4), threshold * (1.0 + 1e-4));
                    let sides = if after[j] == 0.0 { score(j) <= high } else { score(j) >= low };
                    assert!(sides, "layer {l}, input {j}: {} against {threshold}", score(j));
                }
            }
        }
        // The next layer sees what this one has become.
        model.weights_mut().layers[l] = after;
    }
}

#[test]
fn magnitude_drops_the_smallest_of_each_matrix() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    prune_demo(&out, &options(Method::Magnitude, Target::Sparsity(0.3)), &cpu()).unwrap();
    let (original, pruned) = (demo(), load(&out));
    for (before, after) in original.weights.layers.iter().zip(&pruned.weights.layers) {
        for ((before, _), (after, _)) in matrices(before).into_iter().zip(matrices(after)) {
            let mut expected = reference::values(before);
            let mut order: Vec<usize> = (0..expected.len()).collect();
            order.sort_by(|&a, &b| expected[a].abs().total_cmp(&expected[b].abs()));
            order[..expected.len() * 3 / 10].iter().for_each(|&i| expected[i] = 0.0);
            assert_eq!(reference::values(after), expected);
        }
    }
    let embedding = |model: &Model| model.weights.embedding.dense().unwrap().bytes().to_vec();
    assert!(embedding(&original) == embedding(&pruned));
    assert_eq!(original.weights.norm.weight, pruned.weights.norm.weight);
}

#[test]
fn the_written_quality_is_what_evaluation_finds() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let record = prune_demo(&out, &half(Method::SparseGpt), &exact()).unwrap();
    let tokenizer = Tokenizer::load(&out).unwrap();
    let ids = tokenizer.encode(&std::fs::read_to_string(text()).unwrap(), false).unwrap();
    let options = SessionOptions { sequences: 1, capacity: WINDOW, kv: KvOptions::default() };
    let session = |model| Session::new(Arc::new(model), exact(), Selector::dense(), options).unwrap();
    let (mut before, mut after) = (session(demo()), session(load(&out)));
    let held_out = windows(&ids[99..110], &tokenizer.beginning().unwrap(), WINDOW).unwrap();
    let expected = evaluate(&mut before, &mut after, &held_out, WINDOW, &mut (), |_| ()).unwrap();
    let found = &record.quality.evaluation;
    assert_eq!(found.tokens, expected.tokens);
    for (a, b) in [
        (found.perplexity, expected.perplexity),
        (found.dense_perplexity, expected.dense_perplexity),
        (found.kl_mean, expected.kl_mean),
    ] {
        assert!((a / b - 1.0).abs() < 1e-4, "{a} {b}");
    }
    assert!(found.kl_mean > 0.0);
    // Reading JSON may change the last digit of a number.
    let written: PruningRecord = serde_json::from_str(&serde_json::to_string(&record).unwrap()).unwrap();
    assert_eq!(PruningRecord::read(&out).unwrap(), Some(written));
}

#[test]
fn patterns_sparsities_and_choices_hold_in_what_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let pattern = Target::Pattern(Pattern { keep: 2, of: 4 });
    let owl = PruneOptions { allocation: Allocation::Owl, ..options(Method::Wanda, Target::Sparsity(0.6)) };
    let some = PruneOptions {
        include: vec!["*mlp*".into()],
        exclude: vec!["*layers.[01].*".into(), "*down_proj*".into()],
        ..half(Method::Wanda)
    };
    let worth = PruneOptions { allocation: Allocation::Worth, ..half(Method::SparseGpt) };
    let cases = [options(Method::SparseGpt, pattern), options(Method::Magnitude, pattern), owl, some, worth];
    for (case, options) in cases.into_iter().enumerate() {
        let out = dir.path().join(case.to_string());
        let record = prune_demo(&out, &options, &cpu()).unwrap();
        let tensors: BTreeMap<&String, f64> =
            record.layers.iter().flat_map(|l| &l.tensors).map(|(n, &s)| (n, s)).collect();
        match case {
            0 | 1 => {
                assert_eq!((tensors.len(), record.sparsity), (35, 0.5));
                let model = load(&out);
                for (tensor, _) in model.weights.layers.iter().flat_map(matrices) {
                    let zeros = |few: &[f64]| few.iter().filter(|w| **w == 0.0).count();
                    assert!(reference::values(tensor).chunks(4).all(|few| zeros(few) == 2));
                }
            }
            2 => {
                assert!((record.sparsity - 0.6).abs() < 3e-3, "{}", record.sparsity);
                let targets: Vec<f64> = record.layers.iter().map(|l| l.target).collect();
                assert!((targets.iter().sum::<f64>() / 5.0 - 0.6).abs() < 1e-9, "{targets:?}");
                assert!(targets.iter().all(|t| (t - 0.6).abs() < 0.0801), "{targets:?}");
                assert!(targets.iter().any(|t| (t - 0.6).abs() > 0.0799), "{targets:?}");
            }
            3 => {
                assert_eq!(tensors.len(), 6);
                assert!(tensors.keys().all(|name| name.contains("gate") || name.contains("up")), "{tensors:?}");
                let (before, after) = (demo(), load(&out));
                let bytes =
                    |model: &Model, l: usize| model.weights.layers[l].mlp.up.weight.dense().unwrap().bytes().to_vec();
                assert!(bytes(&before, 1) == bytes(&after, 1) && bytes(&before, 2) != bytes(&after, 2));
            }
            _ => {
                assert!((record.sparsity - 0.5).abs() < 5e-3, "{}", record.sparsity);
                assert!(tensors.values().all(|s| (s - 0.5).abs() < 0.151), "{tensors:?}");
                assert!(tensors.values().any(|s| (s - 0.5).abs() > 0.05), "{tensors:?}");
            }
        }
    }
}

#[test]
fn an_interrupted_run_goes_on_to_the_same_files_on_any_number_of_threads() {
    let dir = tempfile::tempdir().unwrap();
    for (method, allocation) in [(Method::Wanda, Allocation::Owl), (Method::SparseGpt, Allocation::Worth)] {
        let options = PruneOptions { allocation, ..half(method) };
        let (whole, parts) = (dir.path().join("whole"), dir.path().join("parts"));
        prune_demo(&whole, &options, &cpu()).unwrap();
        let expected = files(&whole);
        let one = Arc::new(Cpu::new(Some(1)));
        let interrupted = interrupted(&[3, 18, 30, 45, 60, usize::MAX], &parts, |report| {
            prune(&demo_dir(), &parts, &text(), &options, &one, |_, _, _| report())
        });
        assert!(interrupted > 2);
        let found = files(&parts);
        assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
        found.iter().for_each(|(name, bytes)| assert!(bytes == &expected[name], "{name}"));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
        [whole, parts].iter().for_each(|dir| std::fs::remove_dir_all(dir).unwrap());
    }
}

#[test]
fn what_cannot_be_pruned_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    #[track_caller]
    fn refused(result: Result<PruningRecord>, says: &str) {
        let message = result.unwrap_err().to_string();
        assert!(message.contains(says), "{message:?} does not say {says:?}");
    }
    let with = |change: &dyn Fn(&mut PruneOptions)| {
        let mut options = half(Method::Wanda);
        change(&mut options);
        prune_demo(&out, &options, &cpu())
    };
    refused(with(&|o| o.target = Target::Sparsity(0.9)), "sparsity: must be from 0.2 to 0.8, found 0.9");
    refused(with(&|o| o.target = Target::Sparsity(f64::NAN)), "sparsity: must be from 0.2 to 0.8, found NaN");
    let pattern = |keep, of| Target::Pattern(Pattern { keep, of });
    refused(
        with(&|o| o.target = pattern(2, 7)),
        "pattern: 2:7 does not divide the 256 inputs of model.layers.0.self_attn.q_proj.weight: exclude it",
    );
    let owl = |o: &mut PruneOptions| (o.target, o.allocation) = (pattern(2, 4), Allocation::Owl);
    refused(with(&owl), "allocation: owl gives layers different sparsities, which 2:4 does not allow: use uniform");
    refused(
        with(&|o| o.include = vec!["*lm_head*".into()]),
        "include: \"*lm_head*\" fits no matrix of the decoder layers; one is called model.layers.0.self_attn.q_proj.weight",
    );
    refused(with(&|o| o.exclude = vec!["[".into()]), "exclude: \"[\" is no pattern");
    refused(with(&|o| o.exclude = vec!["*".into()]), "exclude: leaves nothing to prune");
    refused(with(&|o| o.max_tokens = 20), "text: has 20 tokens: too few");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "something is left");

    std::fs::create_dir(dir.path().join("out.pruning")).unwrap();
    std::fs::write(dir.path().join("out.pruning/else"), "").unwrap();
    refused(with(&|_| ()), "out.pruning is in the way and holds no interrupted pruning: remove it");
    std::fs::remove_dir_all(dir.path().join("out.pruning")).unwrap();
    let interrupt = || prune(&demo_dir(), &out, &text(), &half(Method::Wanda), &cpu(), |_, _, _| panic!("interrupted"));
    assert!(catch_unwind(AssertUnwindSafe(interrupt)).is_err());
    refused(
        with(&|o| o.window = 16),
        "holds interrupted pruning of another model or text or with other options: remove it",
    );
    with(&|_| ()).unwrap();
    refused(with(&|_| ()), "already exists: choose another, or remove it first");
}

#[test]
fn weights_and_activations_that_are_not_finite_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (model, out, text) = (dir.path().join("model"), dir.path().join("out"), dir.path().join("text"));
    std::fs::create_dir(&model).unwrap();
    tiny::write(&text, "w1 w2 w3 w4 w5 w6 w7 w8 w9 ".repeat(9));
    let mut options = half(Method::Wanda);
    options.window = 8;
    let mut run = |tensor: &str, method: Method| {
        tiny::write_model(&model);
        let mut file = tiny::TensorFile::new(&tiny::tensors());
        let start = file.header[tensor]["data_offsets"][0].as_u64().unwrap() as usize + 4 * 9;
        file.data[start..start + 4].copy_from_slice(&f32::NAN.to_le_bytes());
        tiny::write(&model.join("model.safetensors"), file.bytes());
        options.method = method;
        let message = prune(&model, &out, &text, &options, &cpu(), |_, _, _| ()).unwrap_err().to_string();
        std::fs::remove_dir_all(dir.path().join("out.pruning")).unwrap();
        message
    };
    for method in [Method::Magnitude, Method::Wanda, Method::SparseGpt] {
        let name = "model.layers.1.mlp.up_proj.weight";
        let message = run(name, method);
        assert!(
            message.contains(&format!("tensor {name}: expected finite weights, found NaN in row 1, column 1")),
            "{message}"
        );
    }
    for method in [Method::Wanda, Method::SparseGpt] {
        let message = run("model.embed_tokens.weight", method);
        assert!(message.contains("text: the activations of layer 0 are not finite on this text"), "{message}");
    }
}

#[test]
fn directories_laid_out_for_sparse_execution_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    tiny::write_model(dir.path());
    tiny::write_sidecar(dir.path());
    let message = prune(dir.path(), &dir.path().join("out"), &text(), &half(Method::Wanda), &cpu(), |_, _, _| ());
    let message = message.unwrap_err().to_string();
    assert!(message.contains("prune the original, then run `sparrow sparsify` on the result"), "{message}");
}
