//! `config.json` and the other small files.

use std::fs;

use proptest::prelude::*;
use serde_json::{Map, json};
use sparrow_testing::goldens_dir;
use sparrow_testing::tiny::{self, TensorFile};

use super::{bytes_of, config, good, values_of};

#[test]
fn config_json() {
    let dir = good(false, false);
    bytes_of(dir.path(), "config.json", 300);
    fs::write(dir.path().join("config.json"), tiny::config().to_string()).unwrap();
    values_of(dir.path(), "config.json", 500);
}

#[test]
fn config_json_of_every_architecture() {
    for golden in fs::read_dir(goldens_dir()).unwrap().map(|e| e.unwrap().path()).filter(|path| path.is_dir()) {
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
