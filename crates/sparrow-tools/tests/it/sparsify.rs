//! The way from a dense directory to a sparse one.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use sparrow::engine::Request;
use sparrow::internals::backend::Threshold;
use sparrow::internals::record::SidecarFile;
use sparrow::{DType, Load, Model, Selector, SelectorSpec};
use sparrow_testing::*;
use sparrow_tools::eval::evaluate;
use sparrow_tools::sparsify::{Goal, SparsifyOptions, sparsify};
use sparrow_tools::text::windows;

/// Between two ways through the same f32 kernels.
const SAME: f64 = 2e-5;

fn sample_path() -> PathBuf {
    demo_dir().join("sample.txt")
}

fn options(selector: &str) -> SparsifyOptions {
    let goal = (selector == "lowrank").then_some(Goal::Recall(0.98));
    SparsifyOptions { goal, window: 64, max_tokens: 1 << 20, ..SparsifyOptions::new(parse(selector), 48) }
}

/// The demo model, sparsified for that selector.
pub fn sparsified(dir: &Path, selector: &str) -> (PathBuf, SidecarFile) {
    let out = dir.join(selector.replace([':', '='], "-"));
    let made = sparsify(&demo_dir(), &out, &sample_path(), &options(selector), &cpu(), |_, _, _| ()).unwrap();
    (out, made.file)
}

#[test]
fn a_sparsified_directory_runs_as_it_was_measured() {
    let dir = tempfile::tempdir().unwrap();
    let ids = sample_ids();
    for (selector, default) in [("gate", "gate"), ("lowrank", "lowrank"), ("lowrank:mean-std=1", "lowrank")] {
        let (out, file) = sparsified(dir.path(), selector);
        // In the way it was measured: as it is stored.
        let loaded = Load::new(&out).cpu(cpu()).format(dense_format()).open(|_, _, _| ()).unwrap();
        let model = &loaded.model;
        let read = &model.sidecar.as_ref().unwrap().file;
        // Measured figures are compared below: reading decimal digits may move their last bit.
        assert_eq!(SidecarFile { quality: file.quality.clone(), ..read.clone() }, file);
        assert_eq!(loaded.selector_spec, parse(default));
        assert!(model.weights.layers.iter().all(|l| l.mlp.down.input_major));
        let record = file.record().unwrap();
        assert_eq!(SelectorSpec::calibrated(record.kind()), parse(default));
        let thresholds = record.neuron_thresholds().unwrap();
        assert_eq!(thresholds.len(), model.spec.num_layers);
        if selector.contains(':') {
            assert!(thresholds.iter().all(|&t| t == Threshold::MeanStd(1.0)));
        }

        // The dense function is the original's, and the written quality is what the loaded model has.
        let original = Arc::new(demo());
        let same = |model: &Arc<Model>| {
            prefill_in(&mut session(&exact(), model, Selector::dense(), 1, Some(DType::F32)), 0, &ids[..40], &[40])
        };
        assert!(worst_difference(&same(model), &same(&original)) < SAME);
        let mut dense = session(&cpu(), model, Selector::dense(), 1, None);
        let mut sparse = session(&cpu(), model, loaded.selector.clone(), 1, None);
        let beginning = loaded.tokenizer().unwrap().beginning().unwrap();
        assert!(file.calibration.bos && beginning == [0]);
        let held_out = windows(&ids[file.calibration.tokens..], &beginning, 64).unwrap();
        let found = evaluate(&mut dense, &mut sparse, &held_out, 64, &mut (), |_| ()).unwrap();
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
        let prompt = loaded.tokenizer().unwrap().encode("Once upon a time", true).unwrap();
        let request = Request { prompt: prompt.clone(), max_new_tokens: 24, ..Request::default() };
        let (text, generated, _) = generate_text(&loaded, request);
        assert!(!generated.is_empty() && !text.trim().is_empty());
        if selector == "gate" {
            dense.truncate(0, 0).unwrap();
            assert_eq!(generated, greedy(&mut dense, 0, &prompt, generated.len()));
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
        (&sample, with(|o| o.selector = SelectorSpec::dense()), vec!["selector", "dense"]),
    ] {
        let message = refused(&demo_dir(), &out, text, &options);
        assert!(words.iter().all(|w| message.contains(w)), "{message:?} should name {words:?}");
        assert_eq!(entries(dir.path()), ["binary.txt", "short.txt"], "after {message}");
    }
    let message = refused(&dir.path().join("no-model"), &out, &sample, &options("gate"));
    assert!(message.contains("no-model"), "{message}");
    assert_eq!(entries(dir.path()), ["binary.txt", "short.txt"]);
}
