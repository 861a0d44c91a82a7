//! Sparsity with every architecture: the way from a golden checkpoint to a sparse directory and back to logits, from
//! memory and through the weight cache.

use std::path::Path;
use std::sync::Arc;

use serde_json::{Value, json};
use sparrow::{DType, Load, Model, Selector};
use sparrow_testing::*;
use sparrow_tools::sparsify::{SparsifyOptions, sparsify};

/// Between two ways through the same f32 kernels.
const SAME: f64 = 2e-5;

/// Copies a golden checkpoint and gives it a tokenizer of words `w0`, `w1`, … and a text of them.
fn checkpoint(golden: &Path, to: &Path, vocab: usize) {
    for file in ["config.json", "model.safetensors"] {
        std::fs::copy(golden.join(file), to.join(file)).unwrap();
    }
    let words: serde_json::Map<String, Value> = (0..vocab).map(|i| (format!("w{i}"), json!(i))).collect();
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": { "type": "Whitespace" }, "post_processor": null, "decoder": null,
        "model": { "type": "WordLevel", "vocab": words, "unk_token": "w0" },
    });
    std::fs::write(to.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    let text: Vec<String> = Random::new(3).ids(vocab, 400).iter().map(|id| format!("w{id}")).collect();
    std::fs::write(to.join("text.txt"), text.join(" ")).unwrap();
}

#[test]
fn every_architecture_can_be_sparsified() {
    let mut architectures = std::collections::BTreeSet::new();
    let mut goldens: Vec<_> = std::fs::read_dir(goldens_dir()).unwrap().map(|e| e.unwrap().path()).collect();
    goldens.retain(|path| path.is_dir());
    for golden in goldens {
        let original = Arc::new(load(&golden));
        if original.spec.architecture == "LlamaForCausalLM" {
            continue; // the demo model stands for it, in `sparsify.rs`
        }
        architectures.insert(original.spec.architecture.clone());
        let dir = tempfile::tempdir().unwrap();
        checkpoint(&golden, dir.path(), original.spec.vocab_size);
        let tokens = Random::new(4).ids(original.spec.vocab_size, 24);
        let calls = [9, 1, 1, 12, 1];
        let dense = |model: &Arc<Model>| {
            prefill_in(&mut session(&exact(), model, Selector::dense(), 1, Some(DType::F32)), 0, &tokens, &calls)
        };
        let expected = dense(&original);
        for (rule, keeps_all) in [("quantile=0", true), ("quantile=0.6", false)] {
            for kind in ["gate", "lowrank", "sign", "input"] {
                let (selector, out) = (format!("{kind}:{rule}"), dir.path().join(format!("{kind}-{keeps_all}")));
                let what = format!("{}, {selector}", golden.file_name().unwrap().to_string_lossy());
                // A rule for inputs needs no calibration, and so no directory of its own.
                let model = if kind == "input" {
                    load(dir.path())
                } else {
                    let options = SparsifyOptions { window: 16, ..SparsifyOptions::new(parse(&selector), 8) };
                    let text = dir.path().join("text.txt");
                    sparsify(dir.path(), &out, &text, &options, &cpu(), |_, _, _| ()).unwrap();
                    let model = load(&out);
                    assert!(model.weights.layers.iter().all(|l| l.mlp.down.input_major), "{what}: stored neuron-major");
                    model
                };
                let (model, selector) = prepare(model, parse(&selector));
                let worst = worst_difference(&dense(&model), &expected);
                assert!(worst < SAME, "{what}: the dense function is {worst:.1e} off");

                let mut sparse = session(&exact(), &model, selector, 1, Some(DType::F32));
                let found = prefill_in(&mut sparse, 0, &tokens, &calls);
                let (worst, active) = (worst_difference(&found, &expected), sparse.stats().active_fraction());
                assert_eq!(worst < SAME, keeps_all, "{what}: {worst:.1e} from dense");
                assert_eq!(active == 1.0, keeps_all, "{what}: {active} active");
                assert!(found.iter().flatten().all(|v| v.is_finite()), "{what}");
                if kind == "input" {
                    continue; // selects no neurons, which is what the cache holds
                }
                let load = Load::new(&out).cpu(cpu()).weights("cache:0.3".parse().unwrap());
                let cached = load.selector(parse(&format!("{kind}:{rule}"))).open(|_, _, _| ()).unwrap();
                let mut cached = session(&exact(), &cached.model, cached.selector, 1, Some(DType::F32));
                sparse.truncate(0, 0).unwrap();
                let [cached, sparse] = [&mut cached, &mut sparse].map(|s| decode_each(s, 0, &tokens[..8]));
                let off: Vec<f64> =
                    (cached.chunks(1).zip(sparse.chunks(1))).map(|(a, b)| worst_difference(a, b)).collect();
                // Sums in another order may tip a neuron whose score is that of the quantile.
                let tipped = off.iter().filter(|&&off| off >= SAME).count();
                assert!(tipped <= usize::from(!keeps_all), "{what}: {off:?} off with the weight cache");
            }
        }
    }
    assert_eq!(architectures.len(), 11, "{architectures:?}");
}
