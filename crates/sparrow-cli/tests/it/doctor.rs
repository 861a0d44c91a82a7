//! `sparrow doctor`.

use crate::command::{has_keys, json, succeed};

#[test]
fn doctor_reports_the_machine() {
    let value = json(&["doctor", "--format", "json"]);
    has_keys(
        &value,
        &["cpu", "isa", "tiers", "threads", "cgroup_quota_cpus", "huge_pages", "read_gb_s", "peak_tflops"],
    );
    assert!(value["read_gb_s"].as_f64().unwrap() > 0.0, "{value}");
    has_keys(&value["peak_tflops"], &["f32", "bf16", "int8"]);
    assert!(value["peak_tflops"]["f32"].as_f64().unwrap() > 0.0, "{value}");
    for tier in value["tiers"].as_array().unwrap() {
        has_keys(tier, &["isa", "available", "reason"]);
    }
    assert!(succeed(&["doctor", "--threads", "1"]).contains("Sparrow will use"));
}
