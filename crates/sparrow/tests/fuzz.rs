//! Random damage to the files of a model directory never makes loading panic, and what still loads runs one token.
//! `SPARROW_FUZZ=100 cargo test --test fuzz` tries a hundred times as many cases.

mod tiny;

use std::fs;
use std::path::Path;

use proptest::prelude::*;
use proptest::sample::Index;
use serde_json::{Map, Value, json};
use sparrow::sparsity::{SkippedBlocks, Threshold};
use sparrow::{DType, SelectorSpec};
use tiny::TensorFile;

/// One act of damage to a file.
#[derive(Debug, Clone)]
enum Damage {
    /// Flips bits of the byte at this place.
    Flip(Index, u8),
    /// Cuts the file here.
    Truncate(Index),
    /// Inserts bytes.
    Insert(Index, Vec<u8>),
    /// Removes up to this many bytes.
    Remove(Index, u8),
}

impl Damage {
    fn apply(&self, bytes: &mut Vec<u8>) {
        let len = bytes.len();
        match self {
            Damage::Flip(at, bits) if len > 0 => bytes[at.index(len)] ^= bits,
            Damage::Truncate(at) => bytes.truncate(at.index(len + 1)),
            Damage::Insert(at, new) => {
                let at = at.index(len + 1);
                bytes.splice(at..at, new.iter().copied());
            }
            Damage::Remove(at, count) if len > 0 => {
                let at = at.index(len);
                bytes.drain(at..len.min(at + usize::from(*count)));
            }
            _ => {}
        }
    }
}

fn damage() -> impl Strategy<Value = Damage> {
    // Digits and punctuation keep JSON alive more often than any byte does.
    let byte = prop_oneof![any::<u8>(), proptest::sample::select(b"0123456789-+.eE,:[]{}\" ntf\\".as_slice())];
    prop_oneof![
        4 => (any::<Index>(), 1..=255u8).prop_map(|(at, bits)| Damage::Flip(at, bits)),
        1 => any::<Index>().prop_map(Damage::Truncate),
        3 => (any::<Index>(), prop::collection::vec(byte, 1..6)).prop_map(|(at, new)| Damage::Insert(at, new)),
        2 => (any::<Index>(), 1..16u8).prop_map(|(at, count)| Damage::Remove(at, count)),
    ]
}

/// JSON that a field should not have, or should within limits.
fn json_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (-2i64..40).prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        (0.0..4.0f64).prop_map(Value::from),
        "[a-z0-9_./\\\\-]{0,12}".prop_map(Value::from),
        proptest::sample::select(
            [
                "relu",
                "silu",
                "gelu",
                "linear",
                "dynamic",
                "llama3",
                "yarn",
                "longrope",
                "default",
                "sliding_attention",
                "F16",
                "BF16",
                "gate",
                "dense",
            ]
            .as_slice()
        )
        .prop_map(Value::from),
    ];
    leaf.prop_recursive(2, 8, 3, |inner| {
        let key = proptest::sample::select(
            ["factor", "rope_type", "type", "rope_theta", "fixed", "top-k", "quantile", "mean-std", "x"].as_slice(),
        );
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            prop::collection::vec((key, inner), 0..3)
                .prop_map(|list| Value::Object(list.into_iter().map(|(k, v)| (k.to_owned(), v)).collect())),
        ]
    })
}

/// Replaces the value at a random place inside `value`.
fn replace(value: &mut Value, path: &[Index], new: Value) {
    match (path.split_first(), value) {
        (Some((at, rest)), Value::Object(map)) if !map.is_empty() => {
            let at = at.index(map.len());
            let child = map.values_mut().nth(at).expect("inside");
            replace(child, rest, new);
        }
        (Some((at, rest)), Value::Array(list)) if !list.is_empty() => {
            let at = at.index(list.len());
            replace(&mut list[at], rest, new);
        }
        (_, value) => *value = new,
    }
}

/// Places and values to put there.
fn replacements() -> impl Strategy<Value = Vec<(Vec<Index>, Value)>> {
    prop::collection::vec((prop::collection::vec(any::<Index>(), 1..4), json_value()), 1..4)
}

/// A good directory, made once and copied for each case.
fn good(shards: bool, sidecar: bool) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    tiny::write_model(dir.path());
    if shards {
        tiny::write_shards(dir.path());
    }
    if sidecar {
        tiny::write_sidecar(dir.path());
    }
    tiny::load_and_step(dir.path()).unwrap();
    dir
}

fn config(cases: u32) -> ProptestConfig {
    let times = std::env::var("SPARROW_FUZZ").map_or(1, |times| times.parse().expect("SPARROW_FUZZ is a number"));
    ProptestConfig { cases: cases * times, failure_persistence: None, ..ProptestConfig::default() }
}

/// Damages `file` of a good directory `cases` times; nothing may panic.
fn survive<S: Strategy>(dir: &Path, file: &str, cases: u32, strategy: S, damage: impl Fn(&[u8], S::Value) -> Vec<u8>) {
    let path = dir.join(file);
    let original = fs::read(&path).unwrap();
    let mut runner = proptest::test_runner::TestRunner::new(config(cases));
    let result = runner.run(&strategy, |value| {
        // A new file each time: the old one may still be mapped.
        fs::remove_file(&path).unwrap();
        fs::write(&path, damage(&original, value)).unwrap();
        if let Err(error) = tiny::load_and_step(dir) {
            let message = error.to_string();
            prop_assert!(!message.is_empty() && message.len() < 2000, "message of {} bytes", message.len());
        }
        Ok(())
    });
    if let Err(error) = result {
        panic!("{file}: {error}");
    }
}

fn bytes_of(dir: &Path, file: &str, cases: u32) {
    let strategy = prop::collection::vec(damage(), 1..4);
    survive(dir, file, cases, strategy, |original, list| {
        let mut bytes = original.to_vec();
        list.iter().for_each(|damage| damage.apply(&mut bytes));
        bytes
    });
}

fn values_of(dir: &Path, file: &str, cases: u32) {
    survive(dir, file, cases, replacements(), |original, list| {
        let mut value: Value = serde_json::from_slice(original).unwrap();
        for (path, new) in list {
            replace(&mut value, &path, new);
        }
        value.to_string().into_bytes()
    });
}

#[test]
fn config_json() {
    let dir = good(false, false);
    bytes_of(dir.path(), "config.json", 300);
    fs::write(dir.path().join("config.json"), tiny::config().to_string()).unwrap();
    values_of(dir.path(), "config.json", 500);
}

#[test]
fn config_json_of_every_architecture() {
    let goldens = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens");
    for golden in fs::read_dir(goldens).unwrap().map(|e| e.unwrap().path()).filter(|path| path.is_dir()) {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("tokenizer.json"), tiny::tokenizer().to_string()).unwrap();
        fs::copy(golden.join("config.json"), dir.path().join("config.json")).unwrap();
        for file in fs::read_dir(&golden).unwrap().map(|e| e.unwrap().file_name()) {
            if file.to_string_lossy().starts_with("model") {
                fs::copy(golden.join(&file), dir.path().join(&file)).unwrap();
            }
        }
        tiny::load_and_step(dir.path()).unwrap();
        values_of(dir.path(), "config.json", 40);
    }
}

/// Configuration and header of quantised checkpoints, and any bits for codes, scales and zero points.
#[test]
fn compressed_checkpoints() {
    for case in ["int8-channel", "int4-group-32", "int4-group-128-zero"] {
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/compressed").join(case);
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("tokenizer.json"), tiny::tokenizer().to_string()).unwrap();
        for file in ["config.json", "model.safetensors"] {
            fs::copy(from.join(file), dir.path().join(file)).unwrap();
        }
        tiny::load_and_step(dir.path()).unwrap();
        let config = fs::read(dir.path().join("config.json")).unwrap();
        values_of(dir.path(), "config.json", 100);
        fs::write(dir.path().join("config.json"), config).unwrap();
        let original = fs::read(dir.path().join("model.safetensors")).unwrap();
        let (header, data) = tiny::parts(&original);
        survive(dir.path(), "model.safetensors", 150, replacements(), |_, list| {
            let mut value = Value::Object(header.clone());
            for (path, new) in list {
                replace(&mut value, &path, new);
            }
            tiny::framed(value.to_string().as_bytes(), data)
        });
        survive(dir.path(), "model.safetensors", 50, prop::collection::vec(any::<u8>(), 64), |_, noise| {
            let data: Vec<u8> = (0..data.len()).map(|i| noise[(i * 31 + i / 64) % noise.len()]).collect();
            tiny::framed(Value::Object(header.clone()).to_string().as_bytes(), &data)
        });
    }
}

#[test]
fn generation_config_json() {
    let dir = good(false, false);
    bytes_of(dir.path(), "generation_config.json", 150);
    fs::write(dir.path().join("generation_config.json"), r#"{"eos_token_id": [1, 2]}"#).unwrap();
    values_of(dir.path(), "generation_config.json", 150);
}

#[test]
fn index_json() {
    let dir = good(true, false);
    let path = dir.path().join("model.safetensors.index.json");
    let original = fs::read(&path).unwrap();
    bytes_of(dir.path(), "model.safetensors.index.json", 300);
    fs::write(&path, original).unwrap();
    values_of(dir.path(), "model.safetensors.index.json", 200);
}

#[test]
fn safetensors_bytes() {
    let dir = good(false, false);
    bytes_of(dir.path(), "model.safetensors", 300);
}

/// Damage to the header alone, with a length that matches it: past the first check.
#[test]
fn safetensors_header() {
    let dir = good(false, false);
    let file = TensorFile::new(&tiny::tensors());
    let header = Value::Object(file.header.clone());
    survive(dir.path(), "model.safetensors", 300, prop::collection::vec(damage(), 1..3), |_, list| {
        let mut bytes = header.to_string().into_bytes();
        list.iter().for_each(|damage| damage.apply(&mut bytes));
        tiny::framed(&bytes, &file.data)
    });
    survive(dir.path(), "model.safetensors", 400, replacements(), |_, list| {
        let mut value = header.clone();
        for (path, new) in list {
            replace(&mut value, &path, new);
        }
        tiny::framed(value.to_string().as_bytes(), &file.data)
    });
}

#[test]
fn bitmaps() {
    for dtype in [None, Some(DType::I8), Some(DType::I4G32)] {
        let dir = good(false, false);
        let file = tiny::write_packed(dir.path(), dtype);
        bytes_of(dir.path(), "model.safetensors", 150);
        // The bytes of the tensors alone: past the checks of the header.
        survive(
            dir.path(),
            "model.safetensors",
            300,
            prop::collection::vec((any::<Index>(), 1..=255u8), 1..4),
            |_, list| {
                let mut damaged = file.clone();
                for (at, bits) in list {
                    let len = damaged.data.len();
                    damaged.data[at.index(len)] ^= bits;
                }
                damaged.bytes()
            },
        );
    }
}

/// Weights that are any bits at all (NaN, infinities, denormals) run.
#[test]
fn weights_of_any_bits() {
    let dir = good(false, true);
    fs::remove_file(dir.path().join("sparrow.json")).unwrap();
    let file = TensorFile::new(&tiny::tensors());
    survive(dir.path(), "model.safetensors", 100, prop::collection::vec(any::<u8>(), 64), |_, noise| {
        let data = (0..file.data.len()).map(|i| noise[(i * 31 + i / 64) % noise.len()]).collect();
        TensorFile { header: file.header.clone(), data }.bytes()
    });
}

/// The config and the weights change together: whatever sizes a config asks for, weights of these sizes run.
#[test]
fn sizes_that_fit_run() {
    let dir = tempfile::tempdir().unwrap();
    let sizes = (1..=3usize, 1..=3usize, 1..=4usize, 1..=20usize, 1..=20usize, 1..=40usize, 0..5usize, 1.0..2000.0f64);
    let mut runner = proptest::test_runner::TestRunner::new(config(150));
    let result = runner.run(&sizes, |(layers, kv_heads, group, hidden, intermediate, vocab, rule, factor)| {
        let head_dim = 2 * group;
        let heads = kv_heads * group;
        let mut all = vec![("model.embed_tokens.weight".to_owned(), vec![vocab, hidden])];
        for l in 0..layers {
            for (part, shape) in [
                ("input_layernorm", vec![hidden]),
                ("post_attention_layernorm", vec![hidden]),
                ("self_attn.q_proj", vec![heads * head_dim, hidden]),
                ("self_attn.k_proj", vec![kv_heads * head_dim, hidden]),
                ("self_attn.v_proj", vec![kv_heads * head_dim, hidden]),
                ("self_attn.o_proj", vec![hidden, heads * head_dim]),
                ("mlp.gate_proj", vec![intermediate, hidden]),
                ("mlp.up_proj", vec![intermediate, hidden]),
                ("mlp.down_proj", vec![hidden, intermediate]),
            ] {
                all.push((format!("model.layers.{l}.{part}.weight"), shape));
            }
        }
        all.push(("model.norm.weight".to_owned(), vec![hidden]));
        let mut config = tiny::config();
        config.as_object_mut().unwrap().extend(Map::from_iter(
            [
                ("hidden_size", json!(hidden)),
                ("intermediate_size", json!(intermediate)),
                ("num_hidden_layers", json!(layers)),
                ("num_attention_heads", json!(heads)),
                ("num_key_value_heads", json!(kv_heads)),
                ("head_dim", json!(head_dim)),
                ("vocab_size", json!(vocab)),
                ("max_position_embeddings", json!(vocab)),
            ]
            .map(|(k, v)| (k.to_owned(), v)),
        ));
        config["rope_scaling"]["rope_type"] = json!(["default", "linear", "dynamic", "llama3", "yarn"][rule]);
        config["rope_scaling"]["factor"] = json!(factor);
        fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
        fs::write(dir.path().join("tokenizer.json"), tiny::tokenizer().to_string()).unwrap();
        let _ = fs::remove_file(dir.path().join("model.safetensors"));
        fs::write(dir.path().join("model.safetensors"), TensorFile::new(&all).bytes()).unwrap();
        match tiny::load_and_step(dir.path()) {
            Ok(()) => prop_assert!(factor <= 1024.0 || rule == 0),
            Err(e) => {
                let e = e.to_string();
                prop_assert!(e.contains("rope_scaling.factor") || e.contains("outside the model's vocabulary"), "{e}");
            }
        }
        Ok(())
    });
    result.unwrap();
}

#[test]
fn tokenizer_json() {
    let dir = good(false, false);
    bytes_of(dir.path(), "tokenizer.json", 200);
    fs::write(dir.path().join("tokenizer.json"), tiny::tokenizer().to_string()).unwrap();
    values_of(dir.path(), "tokenizer.json", 200);
}

#[test]
fn sparrow_json() {
    let dir = good(false, true);
    let original = fs::read(dir.path().join("sparrow.json")).unwrap();
    bytes_of(dir.path(), "sparrow.json", 200);
    fs::write(dir.path().join("sparrow.json"), original).unwrap();
    values_of(dir.path(), "sparrow.json", 400);
}

/// Thresholds alone, where values that load are likely.
#[test]
fn sparrow_json_thresholds() {
    let dir = good(false, true);
    let rule = proptest::sample::select(["fixed", "mean-std", "sparsity", "top-k", "quantile"].as_slice());
    let number = prop_oneof![
        any::<f64>().prop_map(Value::from),
        (-2.0..2.0f64).prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        (0..20u64).prop_map(Value::from),
    ];
    let threshold = (rule, number).prop_map(|(rule, number)| json!({ rule: number }));
    let inputs = proptest::collection::vec(-1.0..2.0f64, 7);
    let strategy = (threshold.clone(), threshold, inputs, 0..4);
    survive(dir.path(), "sparrow.json", 400, strategy, |original, (first, second, inputs, method)| {
        let mut value: Value = serde_json::from_slice(original).unwrap();
        let thresholds = json!([first, second]);
        match method {
            0 => value["method"]["lowrank"]["thresholds"] = thresholds,
            1 => value["method"] = json!({ "gate": { "thresholds": thresholds } }),
            2 => value["method"] = json!({ "sign": { "thresholds": thresholds } }),
            _ => value["method"] = json!({ "input": { "thresholds": [inputs, inputs] } }),
        }
        value.to_string().into_bytes()
    });
}

#[test]
fn predictor_tensors() {
    let dir = good(false, true);
    bytes_of(dir.path(), "sparrow.safetensors", 200);
}

fn finite() -> impl Strategy<Value = f32> {
    any::<f32>().prop_filter("finite", |v| v.is_finite())
}

fn threshold() -> impl Strategy<Value = Threshold> {
    prop_oneof![
        finite().prop_map(Threshold::Fixed),
        finite().prop_map(Threshold::MeanStd),
        (1e-6f32..0.999_999).prop_map(Threshold::Sparsity),
        (1..=usize::MAX).prop_map(Threshold::TopK),
        (0.0..1.0f32).prop_map(Threshold::Quantile),
    ]
}

fn skipped() -> impl Strategy<Value = SkippedBlocks> {
    let layers = || proptest::collection::btree_set(0usize..4096, 0..6);
    let not_empty = |blocks: &SkippedBlocks| !(blocks.attention.is_empty() && blocks.mlp.is_empty());
    (layers(), layers())
        .prop_map(|(attention, mlp)| SkippedBlocks { attention, mlp })
        .prop_filter("something is skipped", not_empty)
}

fn selector() -> impl Strategy<Value = SelectorSpec> {
    prop_oneof![
        Just(SelectorSpec::Dense),
        proptest::option::of(threshold()).prop_map(SelectorSpec::Gate),
        proptest::option::of(threshold()).prop_map(SelectorSpec::LowRank),
        proptest::option::of(threshold()).prop_map(SelectorSpec::Sign),
        proptest::option::of(threshold()).prop_map(SelectorSpec::Input),
        proptest::option::of(skipped()).prop_map(SelectorSpec::Skip),
        (0.0..=1.0f32, 0.0..=1.0f32).prop_map(|(active, overlap)| SelectorSpec::Forced { active, overlap }),
    ]
}

proptest! {
    #![proptest_config(config(500))]

    #[test]
    fn thresholds_read_back(threshold in threshold()) {
        prop_assert_eq!(threshold.to_string().parse::<Threshold>(), Ok(threshold));
        let json = serde_json::to_string(&threshold).unwrap();
        prop_assert_eq!(serde_json::from_str::<Threshold>(&json).unwrap(), threshold);
    }

    #[test]
    fn selectors_read_back(selector in selector()) {
        prop_assert_eq!(selector.to_string().parse::<SelectorSpec>(), Ok(selector));
    }

    #[test]
    fn any_text_is_read_or_refused(text in "\\PC{0,24}") {
        let _ = text.parse::<Threshold>();
        let _ = text.parse::<SelectorSpec>();
    }

    #[test]
    fn almost_selectors_are_read_or_refused(
        name in "(dense|gate|lowrank|forced|Gate|)",
        sign in "[:=,]{0,2}",
        rule in "(fixed|mean-std|top-k|quantile|active|)",
        value in "(=?[-+0-9.eE]{0,12}|=nan|=inf|=1e40|=99999999999999999999)",
        rest in "(,overlap=[0-9.]{0,4}|)",
    ) {
        let text = format!("{name}{sign}{rule}{value}{rest}");
        if let Ok(selector) = text.parse::<SelectorSpec>() {
            // What was read is written as it will be read again (as text: NaN equals nothing).
            let written = selector.to_string();
            prop_assert_eq!(written.parse::<SelectorSpec>().map(|s| s.to_string()), Ok(written), "{}", text);
        }
    }
}
