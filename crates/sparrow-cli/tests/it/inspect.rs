//! `sparrow inspect`.

use serde_json::Value;

use crate::command::{has_keys, json, succeed};

#[test]
fn inspect_describes_the_model() {
    let table = succeed(&["inspect"]);
    for part in ["LlamaForCausalLM", "parameters", "1024 neurons", "model.layers.*.mlp.up_proj.weight", "BF16"] {
        assert!(table.contains(part), "{table}");
    }
    let gemma = concat!(env!("CARGO_MANIFEST_DIR"), "/../sparrow/tests/goldens/gemma3-windows");
    let table = succeed(&["inspect", gemma]);
    for part in [
        "1 layer sees all tokens, 3 layers see the last 5",
        "rotary, theta 50000, linear scaling by 4; in layers with a window rotary, theta 100\n",
    ] {
        assert!(table.contains(part), "{table}");
    }
    assert!(table.find("tensor").unwrap() < table.find("architecture").unwrap(), "the summary is last: {table}");
    assert!(!table.contains("layer 0"), "{table}");
    let layers = succeed(&["inspect", gemma, "--layers"]);
    assert!(
        layers.contains("layer 3") && layers.find("layer 3").unwrap() < layers.find("architecture").unwrap(),
        "{layers}"
    );
    let value = json(&["inspect", "--format", "json"]);
    has_keys(
        &value,
        &["architecture", "parameters", "bytes", "num_layers", "context_length", "windows", "tensors", "sparsity"],
    );
    assert_eq!(value["architecture"], "LlamaForCausalLM");
    assert_eq!(value["hidden_size"], 256);
    assert_eq!(value["sparsity"], Value::Null);
    let bytes: u64 = value["tensors"].as_array().unwrap().iter().map(|t| t["bytes"].as_u64().unwrap()).sum();
    assert_eq!(value["bytes"], bytes);
}
