//! A `sparrow.json` that does not fit the model beside it is refused by its field.

use std::path::Path;

use serde_json::{Value, json};
use sparrow::{Model, Placement, Result};
use sparrow_testing::demo_dir;

use crate::sparsify::sparsified;

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
        let result = Model::load(dir, Placement::Mapped);
        std::fs::write(&path, before).unwrap();
        result.map(|_| ())
    };
    let edited = |dir: &Path, field: &str, value: Value| {
        let mut json = read(dir);
        json[field] = value;
        load_with(dir, &json)
    };
    let check = |what: &str, result: Result<()>, field: &str| {
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
    check("another model", Model::load(&other, Placement::Mapped).map(|_| ()), "fingerprint");
    let (input, _) = sparsified(dir.path(), "input");
    let weights = load_with(&input, &read(&input));
    assert!(weights.is_ok(), "unchanged content loads: {weights:?}");
    // Those of another selector are not what it needs.
    std::fs::copy(low_rank.join("sparrow.safetensors"), input.join("sparrow.safetensors")).unwrap();
    let message = Model::load(&input, Placement::Mapped).unwrap_err().to_string();
    assert!(message.contains("sparrow.layers.0.input_norms.attention"), "{message}");
    for dir in [&low_rank, &input] {
        std::fs::remove_file(dir.join("sparrow.safetensors")).unwrap();
        let message = Model::load(dir, Placement::Mapped).unwrap_err().to_string();
        assert!(message.contains("sparrow.safetensors"), "{message}");
    }
}
