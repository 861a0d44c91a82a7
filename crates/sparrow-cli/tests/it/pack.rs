//! `sparrow pack`.

use serde_json::Value;

use crate::command::{fail, has_keys, json, succeed};

#[test]
fn pack_makes_a_directory_that_every_command_loads() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (dense, packed, quantized) = (path("dense"), path("packed"), path("quantized"));
    succeed(&["synth", "--shape", "smollm2-135m", "--zeros", "0.6", "-o", &dense]);
    let report = json(&["pack", "-m", &dense, "-o", &packed, "--format", "json"]);
    let tensors = report["tensors"].as_array().unwrap();
    assert_eq!(tensors.len(), 7 * 30 + 1, "the projections of every layer, and the tied head");
    for tensor in tensors {
        has_keys(tensor, &["name", "dtype", "shape", "density", "bytes_before", "bytes_after"]);
        assert!((tensor["density"].as_f64().unwrap() - 0.4).abs() < 0.02, "{tensor}");
    }
    let bitmaps = &json(&["inspect", &packed, "--format", "json"])["bitmaps"];
    assert_eq!(bitmaps["matrices"], 7 * 30 + 1);
    let bytes = bitmaps["bytes_per_weight"].as_f64().unwrap();
    // Two bytes of 40 %, a bit of all, eight bytes a row.
    assert!((0.92..0.95).contains(&bytes), "{bytes}");
    assert_eq!(json(&["inspect", &dense, "--format", "json"])["bitmaps"], Value::Null);
    assert!(succeed(&["inspect", &packed]).contains("211 matrices, 60.0 % zeros"));

    let table = succeed(&[
        "pack",
        "-m",
        &dense,
        "-o",
        &quantized,
        "--dtype",
        "int8",
        "--weights-format",
        "dense,*.mlp.*=bitmap",
    ]);
    assert!(table.contains("model.layers.29.mlp.down_proj.weight") && !table.contains("self_attn"), "{table}");
    let bench = |model: &str, options: &[&str]| {
        let common =
            ["bench", "-m", model, "--prompt-tokens", "12", "--gen-tokens", "2", "--runs", "1", "--format", "json"];
        let rows = json(&[&common[..], options].concat())["rows"].clone();
        rows.as_array().unwrap().iter().map(|row| row["weight_bytes_per_token"].as_f64().unwrap()).collect::<Vec<_>>()
    };
    let formats = ["--weights-format", "dense", "--weights-format", "auto"];
    let (from_dense, from_packed) = (bench(&dense, &formats), bench(&packed, &formats));
    assert_eq!(from_dense, from_packed, "a format is the same wherever it comes from");
    assert!(from_packed[1] < 0.7 * from_packed[0], "{from_packed:?}");
    assert!(bench(&quantized, &["--dtype", "int8"])[0] < bench(&quantized, &[])[0], "the rest was quantised too");

    fail(1, &["pack", "-m", &dense, "-o", &packed], &["already exists"]);
    fail(1, &["pack", "-o", &path("none")], &["zeros", "sparrow prune"]);
    fail(1, &["pack", "-m", &packed, "-o", &path("twice")], &["is packed already"]);
    fail(1, &["pack", "-m", &dense, "-o", &path("zero"), "--dtype", "int4-zero"], &["int4-zero", "int4-g128"]);
    fail(
        2,
        &["pack", "-m", &dense, "-o", &path("bad"), "--weights-format", "sparse"],
        &["sparse", "auto, dense or bitmap"],
    );
    fail(2, &["bench", "--zeros", "0.5"], &["--shape"]);
    fail(2, &["bench", "--shape", "smollm2-135m", "--zeros", "1.5"], &["from 0 to 1"]);
}
