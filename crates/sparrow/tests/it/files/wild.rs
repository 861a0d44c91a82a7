//! Model directories as they are met with: unusual, but of one meaning. Each gives the logits of the usual one.

use std::path::Path;

use serde_json::{Value, json};
use sparrow::internals::checkpoint::Checkpoint;
use sparrow::internals::checkpoint::config::parse_config;
use sparrow::internals::spec::{Positions, RopeScaling};
use sparrow::{KvOptions, Load, SessionOptions};
use sparrow_testing::tiny::{self, TensorFile, VOCAB, tensors, write};

/// A name, and how to change the usual directory.
type Case = (&'static str, Box<dyn Fn(&Path)>);

fn logits(dir: &Path) -> Vec<f32> {
    let loaded = Load::new(dir).threads(1).open(|_, _, _| ()).unwrap_or_else(|e| panic!("{e}"));
    let options = SessionOptions { sequences: 1, capacity: 8, kv: KvOptions::default() };
    let mut session = loaded.session(options).unwrap();
    session.prefill(0, &[3, 5, 7]).unwrap().to_vec()
}

/// The usual directory, changed.
fn changed(change: &dyn Fn(&Path)) -> Vec<f32> {
    let dir = tempfile::tempdir().unwrap();
    tiny::write_model(dir.path());
    change(dir.path());
    logits(dir.path())
}

fn same(cases: Vec<Case>) {
    let usual = changed(&|_| ());
    for (name, change) in cases {
        assert_eq!(changed(&change), usual, "{name}");
    }
}

/// Renames every tensor.
fn renamed(rename: fn(&str) -> String) -> Box<dyn Fn(&Path)> {
    Box::new(move |dir| {
        let mut file = TensorFile::new(&tensors());
        file.header = file.header.into_iter().map(|(name, info)| (rename(&name), info)).collect();
        write(&dir.join("model.safetensors"), file.bytes());
    })
}

/// Adds a tensor.
fn added(name: &'static str, dtype: &'static str, shape: &'static [usize], bytes: usize) -> Box<dyn Fn(&Path)> {
    Box::new(move |dir| {
        let mut file = TensorFile::new(&tensors());
        let start = file.data.len();
        file.data.resize(start + bytes, 1);
        let info = json!({ "dtype": dtype, "shape": shape, "data_offsets": [start, start + bytes] });
        file.header.insert(name.to_owned(), info);
        write(&dir.join("model.safetensors"), file.bytes());
    })
}

/// Writes `config.json` as this text of it.
fn config(text: impl Fn(String) -> Vec<u8> + 'static) -> Box<dyn Fn(&Path)> {
    Box::new(move |dir| write(&dir.join("config.json"), text(tiny::config().to_string())))
}

/// Adds fields to `config.json`.
fn fields(changes: Value) -> Box<dyn Fn(&Path)> {
    config(move |text| {
        let mut config: Value = serde_json::from_str(&text).unwrap();
        config.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        config.to_string().into_bytes()
    })
}

#[test]
fn names_with_another_beginning() {
    same(vec![
        ("without model.", renamed(|name| name.strip_prefix("model.").unwrap_or(name).to_owned())),
        ("compiled", renamed(|name| format!("_orig_mod.{name}"))),
        ("data-parallel", renamed(|name| format!("module.{name}"))),
        ("in a model that sees", renamed(|name| format!("language_model.{name}"))),
        ("newer", renamed(|name| name.replace("model.", "model.language_model."))),
        ("an adapter's base", renamed(|name| format!("base_model.model.{name}"))),
    ]);
    let dir = tempfile::tempdir().unwrap();
    renamed(|name| format!("x.{}", name.replace("embed_tokens", "wte")))(dir.path());
    write(&dir.path().join("config.json"), tiny::config().to_string());
    let message = Load::new(dir.path()).open(|_, _, _| ()).unwrap_err().to_string();
    assert!(
        message.contains("model.embed_tokens.weight") && message.contains("among 20 (x.model.layers.0"),
        "{message}"
    );
}

#[test]
fn tensors_that_nobody_needs() {
    same(vec![
        ("rotary frequencies", added("model.layers.0.self_attn.rotary_emb.inv_freq", "F32", &[2], 8)),
        ("state of an engine", added("model.layers.1.self_attn.q_proj._extra_state", "U8", &[0], 0)),
        ("state that is not empty", added("model.layers.1.mlp._extra_state", "U8", &[3], 3)),
        ("a mask", added("model.layers.0.self_attn.masked_bias", "F32", &[1], 4)),
        ("causal masks", added("model.layers.0.self_attn.bias", "U8", &[1, 1, 2, 2], 4)),
        ("scales of a cache", added("model.layers.0.self_attn.k_scale", "F32", &[1], 4)),
        ("in another place", added("model.layers.0.self_attn.attn.v_scale", "BF16", &[1], 2)),
        ("positions", added("model.position_ids", "I64", &[1], 8)),
        ("nothing at all", added("model.layers.0.mlp.gate_proj.bias", "F32", &[0], 0)),
        ("another part of the model", added("vision_tower.embed.weight", "F32", &[1], 4)),
    ]);
}

#[test]
fn configurations_as_python_writes_them() {
    let with = |field: &str| {
        let field = field.to_owned();
        config(move |text| text.replacen('{', &format!("{{{field},"), 1).into_bytes())
    };
    same(vec![
        ("infinity", with(r#""time_step_limit": [0.0, Infinity]"#)),
        ("minus infinity", with(r#""low": -Infinity"#)),
        ("not a number", with(r#""x": {"NaN": NaN, "Infinity": "a \" NaN"}"#)),
        ("a byte order mark", config(|text| [b"\xef\xbb\xbf", text.as_bytes()].concat())),
        ("no architectures", fields(json!({ "architectures": null }))),
        ("an empty list", fields(json!({ "architectures": [] }))),
        ("a base model's", fields(json!({ "architectures": ["LlamaModel"] }))),
        ("several", fields(json!({ "architectures": ["LlamaModel", "MistralForCausalLM", "LlamaForCausalLM"] }))),
        ("no type", fields(json!({ "model_type": null }))),
        ("a type of its own", fields(json!({ "model_type": "my_llama" }))),
    ]);
}

/// What transformers 5.24 does: a head of its own is not tied, whatever the configuration says.
#[test]
fn a_head_beside_a_tied_embedding() {
    let head = |value: fn(f32) -> f32| {
        move |dir: &Path| {
            let mut file = TensorFile::new(&tensors());
            let embedding = file.tensor("model.embed_tokens.weight").to_vec();
            let start = file.data.len();
            let values = embedding.as_chunks().0.iter().map(|&v| value(f32::from_le_bytes(v)));
            file.data.extend(values.flat_map(f32::to_le_bytes));
            let info =
                json!({ "dtype": "F32", "shape": [VOCAB, tiny::HIDDEN], "data_offsets": [start, file.data.len()] });
            file.header.insert("lm_head.weight".to_owned(), info);
            write(&dir.join("model.safetensors"), file.bytes());
        }
    };
    let tied = changed(&|_| ());
    assert_eq!(changed(&head(|v| v)), tied);
    let doubled: Vec<f32> = tied.iter().map(|logit| 2.0 * logit).collect();
    assert_eq!(changed(&head(|v| 2.0 * v)), doubled);
    // What is packed keeps it.
    let dir = tempfile::tempdir().unwrap();
    tiny::write_model(dir.path());
    head(|v| 2.0 * v)(dir.path());
    tiny::write_packed(dir.path(), None);
    assert!(Checkpoint::open(dir.path()).unwrap().contains("lm_head.weight"));
    assert_eq!(logits(dir.path()), doubled);
}

/// As transformers 5.24 reads them.
#[test]
fn both_spellings_of_rotary_embeddings() {
    let parse = |family: &str, changes: Value| {
        let mut config = tiny::config();
        config.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        (config["architectures"], config["model_type"]) = (json!([family]), Value::Null);
        parse_config(Path::new("config.json"), &config).unwrap().positions
    };
    let linear = json!({ "rope_type": "linear", "factor": 4.0 });
    let plain = json!({ "rope_type": "default", "rope_theta": 10_000.0 });
    let scaled = |positions: Positions| match positions {
        Positions::Rope { full, windowed } => {
            (full.theta, full.scaling, windowed.map(|rope| (rope.theta, rope.scaling)))
        }
        other => panic!("{other:?}"),
    };
    let stretch = RopeScaling::Linear { factor: 4.0 };
    let llama = |changes| scaled(parse("LlamaForCausalLM", changes));
    assert_eq!(
        llama(json!({ "rope_theta": null, "rope_scaling": linear, "rope_parameters": plain })),
        (1e4, stretch.clone(), None)
    );
    assert_eq!(llama(json!({ "rope_scaling": {}, "rope_parameters": plain })), (1e4, RopeScaling::None, None));
    assert_eq!(
        llama(
            json!({ "rope_scaling": null, "rope_parameters": { "rope_theta": 5e5, "rope_type": "linear", "factor": 4.0 } })
        ),
        (5e5, stretch.clone(), None)
    );
    let layers = json!({
        "full_attention": { "rope_type": "default", "rope_theta": 2e6 },
        "sliding_attention": { "rope_type": "default", "rope_theta": 5e3 },
    });
    assert_eq!(
        scaled(parse("Gemma3ForCausalLM", json!({ "rope_scaling": linear, "rope_parameters": layers }))),
        (2e6, stretch, Some((5e3, RopeScaling::None)))
    );
}
