use std::fs;
use std::path::Path;

use serde_json::{Map, Value, json};
use sparrow_testing::tiny::{self, TensorFile, tensors, write, write_json, write_sidecar};

use super::{UP, case, check, pipe};

/// Changes one field of a good `sparrow.json`.
fn sidecar_field(name: &'static str, value: Value) -> impl Fn(&Path) {
    sidecar(move |sidecar| {
        sidecar.insert(name.to_owned(), value.clone());
    })
}

/// A field of the sidecar's `lowrank`.
fn low_rank_field(name: &'static str, value: Value) -> impl Fn(&Path) {
    sidecar(move |sidecar| {
        sidecar["method"]["lowrank"][name] = value.clone();
    })
}

fn sidecar(edit: impl Fn(&mut Map<String, Value>) + 'static) -> impl Fn(&Path) {
    move |dir| {
        let mut sidecar = write_sidecar(dir);
        edit(sidecar.as_object_mut().unwrap());
        write_json(&dir.join("sparrow.json"), &sidecar);
    }
}

/// Writes predictors of these tensors beside a good `sparrow.json`.
fn predictors(edit: impl Fn(&mut Vec<(String, Vec<usize>)>) + 'static) -> impl Fn(&Path) {
    move |dir| {
        write_sidecar(dir);
        let mut all = tiny::predictors();
        edit(&mut all);
        write(&dir.join("sparrow.safetensors"), TensorFile::new(&all).bytes());
    }
}

#[test]
fn sidecars() {
    const FILE: &str = "sparrow.json";
    const TENSORS: &str = "sparrow.safetensors";
    check(vec![
        case(
            "another version",
            sidecar_field("format_version", json!(99)),
            &[FILE, "format_version", "expected 2", "99"],
        ),
        case("no version", sidecar(|s| drop(s.remove("format_version"))), &[FILE, "format_version", "null"]),
        case("not an object", |d| write(&d.join(FILE), "[1]"), &[FILE, "format_version"]),
        case("not JSON", |d| write(&d.join(FILE), "{"), &[FILE, "not valid JSON"]),
        case("a directory", |d| fs::create_dir(d.join(FILE)).unwrap(), &[FILE, "not a regular file"]),
        case("unknown field", sidecar_field("treshold", json!(1)), &[FILE, "treshold"]),
        case(
            "missing field",
            sidecar(|s| drop(s["method"]["lowrank"].as_object_mut().unwrap().remove("thresholds"))),
            &[FILE, "thresholds"],
        ),
        case("missing quality", sidecar(|s| drop(s.remove("quality"))), &[FILE, "quality"]),
        case(
            "too few thresholds",
            low_rank_field("thresholds", json!([{ "fixed": 0.0 }])),
            &[FILE, "thresholds", "1 entries", "2 layers"],
        ),
        case(
            "too many truths",
            sidecar_field("true_active_above", json!([0, 0, 0])),
            &[FILE, "true_active_above", "3"],
        ),
        case("another model's fingerprint", sidecar_field("fingerprint", json!("abc")), &[FILE, "fingerprint", "abc"]),
        case(
            "another model's weights",
            |d| {
                write_sidecar(d);
                let mut file = TensorFile::new(&tensors());
                file.data.iter_mut().for_each(|b| *b ^= 1);
                write(&d.join("model.safetensors"), file.bytes());
            },
            &[FILE, "fingerprint", "not its model"],
        ),
        case(
            "NaN threshold",
            low_rank_field("thresholds", json!([{ "fixed": null }, { "fixed": 0 }])),
            &[FILE, "null"],
        ),
        case(
            "threshold beyond f32",
            low_rank_field("thresholds", json!([{ "fixed": 0 }, { "fixed": 1e300 }])),
            &[FILE, "thresholds", "entry 1", "finite"],
        ),
        case(
            "quantile below 0",
            low_rank_field("thresholds", json!([{ "quantile": -5 }, { "fixed": 0 }])),
            &[FILE, "thresholds", "entry 0", "quantile"],
        ),
        case(
            "top 0",
            low_rank_field("thresholds", json!([{ "fixed": 0 }, { "top-k": 0 }])),
            &[FILE, "thresholds", "entry 1"],
        ),
        case("unknown rule", low_rank_field("thresholds", json!([{ "magic": 1 }, { "fixed": 0 }])), &[FILE, "magic"]),
        case(
            "truth below 0",
            sidecar_field("true_active_above", json!([0, -1])),
            &[FILE, "true_active_above", "entry 1"],
        ),
        case("truth beyond f32", sidecar_field("true_active_above", json!([1e300, 0])), &[FILE, "true_active_above"]),
        case("unknown method", sidecar_field("method", json!({ "magic": {} })), &[FILE, "method", "magic", "lowrank"]),
        case("two methods", sidecar(|s| s["method"]["gate"] = json!({ "thresholds": [] })), &[FILE, "method"]),
        case("gate with a rank", sidecar_field("method", json!({ "gate": { "rank": 2 } })), &[FILE, "rank"]),
        case("low rank without rank", low_rank_field("rank", Value::Null), &[FILE, "rank", "null"]),
        case(
            "inputs of too few layers",
            sidecar_field("method", json!({ "input": { "thresholds": [vec![0.0; 7]] } })),
            &[FILE, "thresholds", "1 entries", "2 layers"],
        ),
        case(
            "inputs of six projections",
            sidecar_field("method", json!({ "input": { "thresholds": [vec![0.0; 6], vec![0.0; 7]] } })),
            &[FILE, "method", "7"],
        ),
        case(
            "negative input threshold",
            sidecar_field("method", json!({ "input": { "thresholds": [vec![0.0; 7], vec![-1.0; 7]] } })),
            &[FILE, "thresholds", "entry 1"],
        ),
        case(
            "a layer to skip that is not there",
            sidecar_field("method", json!({ "skip": { "attention": [], "mlp": [0, 2] } })),
            &[FILE, "skip", "layer 2", "2 layers"],
        ),
        case("rank 0", low_rank_field("rank", json!(0)), &[FILE, "rank", "0"]),
        case("rank above the hidden size", low_rank_field("rank", json!(9)), &[FILE, "rank", "9"]),
        case("rank huge", low_rank_field("rank", json!(u64::MAX)), &[FILE, "rank"]),
        case("rank negative", low_rank_field("rank", json!(-1)), &[FILE, "-1"]),
        case(
            "rank of other predictors",
            low_rank_field("rank", json!(3)),
            &[TENSORS, "predictor.a", "[3, 8]", "[2, 8]"],
        ),
        case(
            "predictors missing",
            |d| {
                write_sidecar(d);
                fs::remove_file(d.join(TENSORS)).unwrap();
            },
            &[TENSORS],
        ),
        case(
            "predictors truncated",
            |d| {
                write_sidecar(d);
                let bytes = fs::read(d.join(TENSORS)).unwrap();
                write(&d.join(TENSORS), &bytes[..bytes.len() - 1]);
            },
            &[TENSORS, "not a valid safetensors file"],
        ),
        #[cfg(target_os = "linux")]
        case(
            "predictors a pipe",
            |d| {
                write_sidecar(d);
                fs::remove_file(d.join(TENSORS)).unwrap();
                pipe(&d.join(TENSORS));
            },
            &[TENSORS, "not a regular file"],
        ),
        case(
            "a predictor of another shape",
            predictors(|all| all[4].1 = vec![2, 12]),
            &[TENSORS, "sparrow.layers.1.predictor.b", "[12, 2]", "[2, 12]"],
        ),
        case(
            "a predictor missing",
            predictors(|all| drop(all.pop())),
            &["sparrow.layers.1.predictor.bias", "no such tensor"],
        ),
        case(
            "a predictor named like a weight",
            predictors(|all| all.push((UP.to_owned(), vec![12, 8]))),
            &[TENSORS, UP, "is also in", "model.safetensors"],
        ),
    ]);
}
