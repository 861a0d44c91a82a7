//! What calibration finds, and that it can be interrupted.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use sparrow::internals::select::Method;
use sparrow::{Error, Selector};
use sparrow_testing::*;
use sparrow_tools::eval::evaluate;
use sparrow_tools::sparsify::{Goal, SparsifyOptions, Stage, sparsify};
use sparrow_tools::text::windows;

/// What the demo model's tokenizer puts before a text.
const END_OF_TEXT: u32 = 0;

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
    assert!(matches!(&found, Some(Method::LowRank(found)) if found.epochs == 2));
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
    assert!(matches!(&made.file.method, Some(Method::LowRank(found)) if found.epochs == 0), "{:?}", made.file.method);
    assert!(load(&dir.path().join("out")).sidecar.unwrap().predictors.iter().all(|p| !p.logits));
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
    let (model, uniform) = prepare(demo(), parse("input:quantile=0.5"));
    let ids = sample_ids();
    let held_out = &ids[ids.len().min(3000) - calibrated.tokens..ids.len().min(3000)];
    let held_out = windows(held_out, &[END_OF_TEXT], 64).unwrap();
    let mut dense = session(&cpu(), &model, Selector::dense(), 1, None);
    let mut sparse = session(&cpu(), &model, uniform, 1, None);
    let uniform = evaluate(&mut dense, &mut sparse, &held_out, 64, &mut (), |_| ()).unwrap();
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
