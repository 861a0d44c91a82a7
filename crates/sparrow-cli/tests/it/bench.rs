//! `sparrow bench` and `sparrow profile`.

use serde_json::Value;

use crate::command::{fail, has_keys, json, succeed};

/// The contract that other tools read; more keys are allowed.
#[track_caller]
fn check_bench(report: &Value, rows: usize, synthetic: bool) {
    has_keys(report, &["machine", "model", "rows", "speedup"]);
    has_keys(&report["machine"], &["cpu", "isa", "threads", "read_gb_s"]);
    has_keys(&report["model"], &["name", "params", "dtype", "synthetic"]);
    assert_eq!(report["model"]["synthetic"], synthetic);
    assert_eq!(report["rows"].as_array().unwrap().len(), rows, "{report}");
    assert_eq!(report["speedup"].as_array().unwrap().len(), rows, "{report}");
    for row in report["rows"].as_array().unwrap() {
        has_keys(row, &["name", "selector", "active_fraction", "ttft_s", "peak_rss_bytes"]);
        let positive = |value: &Value| assert!(value.as_f64().is_some_and(|v| v > 0.0 && v.is_finite()), "{row}");
        ["p50", "p90", "mean"].iter().for_each(|q| positive(&row["ttft_s"][q]));
        for figure in [
            "prefill_tokens_per_s",
            "decode_tokens_per_s",
            "total_tokens_per_s",
            "weight_bytes_per_token",
            "decode_gb_s",
            "bandwidth_fraction",
            "peak_rss_bytes",
            "active_fraction",
        ] {
            positive(&row[figure]);
        }
    }
    for (row, speedup) in report["rows"].as_array().unwrap().iter().zip(report["speedup"].as_array().unwrap()) {
        has_keys(speedup, &["name", "ttft", "decode", "total", "memory_reduction"]);
        assert_eq!(speedup["name"], row["name"]);
    }
    for figure in ["ttft", "decode", "total", "memory_reduction"] {
        assert_eq!(report["speedup"][0][figure], 1.0, "{report}");
    }
}

#[test]
fn bench_compares_selectors_of_the_demo() {
    let small = ["--runs", "1", "--gen-tokens", "4", "--prompt-tokens", "16"];
    let report = json(&[&["bench", "--format", "json"], &small[..]].concat());
    check_bench(&report, 2, false);
    assert_eq!(report["rows"][0]["selector"], "dense");
    assert_eq!(report["rows"][1]["selector"], "gate");
    assert!(report["rows"][1]["active_fraction"].as_f64().unwrap() < 0.5, "{report}");
    let table = succeed(&[&["bench", "--selector", "gate"], &small[..]].concat());
    assert!(table.contains("gate"), "{table}");
    fail(1, &["bench", "--prompt-tokens", "100000"], &["--prompt-tokens 100000", "512"]);
    fail(2, &["bench", "--shape", "nonsense"], &["nonsense", "llama-3.2-3b"]);
    fail(2, &["bench", "--shape", "smollm2-135m", "--model", "x"], &["cannot be used with"]);
}

#[test]
fn bench_runs_a_known_shape_with_forced_masks() {
    let args = ["bench", "--shape", "smollm2-135m", "--active", "0.1", "--runs", "1", "--gen-tokens", "3"];
    let report = json(&[&args[..], &["--prompt-tokens", "4", "--format", "json"]].concat());
    check_bench(&report, 2, true);
    let active = report["rows"][1]["active_fraction"].as_f64().unwrap();
    assert!((active - 0.1).abs() < 0.01, "{report}");
    fail(1, &["bench", "--shape", "smollm2-135m", "--active", "1.5", "--runs", "1"], &["active", "1.5"]);
}

#[test]
fn bench_measures_single_kernels() {
    let report = json(&["bench", "--kernels", "mask_to_ids", "argmax", "scalar", "--format", "json"]);
    has_keys(&report, &["cpu", "threads", "kernels"]);
    let rows = report["kernels"].as_array().unwrap();
    assert_eq!(rows.len(), 2, "{report}");
    for row in rows {
        let figures = ["time_us", "calls", "rate", "floor_rate", "fraction"];
        has_keys(row, &["kernel", "isa", "shape", "unit", "floor", "in_cache"]);
        assert!(figures.iter().all(|figure| row[*figure].as_f64().is_some_and(|v| v > 0.0)), "{row}");
        assert_eq!(row["isa"], "scalar");
    }
    fail(1, &["bench", "--kernels", "lineal"], &["--kernels lineal", "linear", "bf16", "avx512"]);
    fail(1, &["bench", "--kernels", "rope", "int8", "scalar"], &["rope int8 scalar", "nothing"]);
    fail(2, &["bench", "--kernels", "rope", "--shape", "llama-3.2-3b"], &["cannot be used with"]);
}

#[test]
fn profile_names_the_components() {
    let reports = json(&["profile", "--prompt-tokens", "16", "--gen-tokens", "4", "--format", "json"]);
    let names = |i: usize| reports[i]["decode"].as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(reports[0]["selector"], "dense");
    for part in ["qkv", "attention", "gate+up", "down", "lm_head", "sampling"] {
        assert!(names(0).contains(&part.to_owned()), "{part} in {:?}", names(0));
        let mean = reports[0]["decode"][part]["mean"].as_f64().unwrap();
        assert!(reports[0]["decode"][part]["max"].as_f64().unwrap() >= mean && mean > 0.0);
    }
    assert_eq!(reports[1]["selector"], "gate");
    for part in ["scores", "threshold", "sparse mlp"] {
        assert!(names(1).contains(&part.to_owned()), "{part} in {:?}", names(1));
    }
}
