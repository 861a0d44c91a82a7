//! `sparrow.json` and its tensors.

use std::fs;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::{bytes_of, good, survive, values_of};

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
