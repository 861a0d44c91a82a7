//! `sparrow quantize`.

use std::path::Path;

use crate::command::{PROMPT, demo, fail, has_keys, json, sparrow, stderr, succeed, text};

#[test]
fn quantize_makes_a_directory_that_every_command_loads() {
    let dir = tempfile::tempdir().unwrap();
    let (demo, text) = (demo(), text());
    let (demo, text) = (demo.to_str().unwrap(), text.to_str().unwrap());
    let out = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    for (method, more, bits) in [
        ("rtn", &["--bits", "8"][..], 8.05),
        ("gptq", &[], 4.5),
        ("awq", &["--bits", "4", "--group", "64", "--zero-points"], 4.3125),
        ("rtn-mixed", &["--average-bits", "6"], 5.95),
    ] {
        let out = out(method);
        let (method, mixed) = (method.trim_end_matches("-mixed"), method.ends_with("-mixed"));
        let args = ["quantize", "-m", demo, "-o", &out, "--method", method, "--text", text, "--window", "64"];
        let args = [&args[..], more, &["--max-tokens", "1200"]].concat();
        let record = json(&[&args[..], &["--format", "json"]].concat());
        assert_eq!((&record["method"], &record["matrices"]), (&method.into(), &35.into()));
        let found = record["bits_per_weight"].as_f64().unwrap();
        assert!((found - bits).abs() < 0.05, "{record}");
        assert_eq!(record["calibration"]["tokens"] == 0, method == "rtn", "{record}");
        has_keys(&record["quality"], &["text", "perplexity", "dense_perplexity", "kl_mean", "top1_agreement"]);
        fail(1, &args, &["already exists"]);

        let shown = json(&["inspect", &out, "--format", "json"])["quantization"].clone();
        assert_eq!(["method", "bits", "group", "source"].map(|key| shown[key] == record[key]), [true; 4], "{shown}");
        let inspected = succeed(&["inspect", &out]);
        assert!(inspected.contains(&format!("35 matrices by {method} to")), "{inspected}");
        assert!(inspected.contains("held-out tenth of sample.txt"), "{inspected}");
        assert_eq!(inspected.contains(" of them to 8 bits in rows, "), mixed, "{inspected}");
        assert!(!succeed(&["generate", "-m", &out, "--prompt", PROMPT, "-n", "8"]).trim().is_empty());
        let eval = ["eval", "-m", &out, "--reference", demo, "--text", text, "--max-tokens", "64", "--format", "json"];
        assert!(json(&eval)["kl_mean"].as_f64().unwrap() < 0.02);
    }
    // What is quantised does not become sparse any more, but says what to do.
    let (gptq, sparse) = (out("gptq"), out("sparse"));
    fail(
        1,
        &["sparsify", &gptq, "-o", &sparse, "--selector", "gate", "--text", text, "--window", "64"],
        &[
            "is quantised to int4: `sparrow sparsify` the original",
            "or quantise it with `sparrow quantize --along output`",
        ],
    );

    let printed = succeed(&[
        "quantize",
        "-m",
        demo,
        "-o",
        &out("some"),
        "--method",
        "rtn",
        "--text",
        text,
        "--exclude",
        "*k_proj*",
    ]);
    assert!(printed.contains("30 matrices by rtn to 4 bits in groups of 32, 4.50 bits per weight"), "{printed}");

    let none = out("none");
    let refused = |code: i32, options: &[&str], says: &[&str]| {
        let args = ["quantize", "-m", demo, "-o", &none, "--text", text];
        fail(code, &[&args[..], options].concat(), says);
        assert!(!Path::new(&none).exists());
    };
    refused(2, &["--method", "best"], &["unknown method \"best\": expected one of rtn, gptq, awq"]);
    refused(2, &[], &["--method"]);
    let rtn = ["--method", "rtn"];
    refused(1, &[&rtn[..], &["--bits", "5"]].concat(), &["bits: must be 4 or 8, found 5"]);
    refused(1, &[&rtn[..], &["--group", "48"]].concat(), &["group: must be 32, 64 or 128, found 48"]);
    refused(
        1,
        &[&rtn[..], &["--bits", "8", "--group", "32"]].concat(),
        &["group: is for 4 bits: weights of 8 bits have one scale per row"],
    );
    // Nothing but the directories is left.
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 5);
}

#[test]
fn rows_of_inputs_can_be_left_out() {
    let dir = tempfile::tempdir().unwrap();
    let (demo, text) = (demo(), text());
    let (demo, text) = (demo.to_str().unwrap(), text.to_str().unwrap());
    let [rows, sparse, gates] = ["rows", "sparse", "gates"].map(|name| dir.path().join(name).display().to_string());
    let calibration = ["--text", text, "--window", "64", "--max-tokens", "1200"];
    let printed = succeed(
        &[&["quantize", "-m", demo, "-o", &rows, "--method", "gptq", "--along", "output"], &calibration[..]].concat(),
    );
    assert!(
        printed.contains("35 matrices by gptq to 4 bits in groups of 32 outputs, 4.50 bits per weight"),
        "{printed}"
    );
    assert!(succeed(&["inspect", &rows]).contains("in groups of 32 outputs"));
    let eval = |model: &str| {
        let text = ["--text", text, "--max-tokens", "300", "--window", "64", "--format", "json"];
        json(&[&["eval", "-m", model, "--reference", demo], &text[..]].concat())
    };
    let number = |report: &serde_json::Value, key: &str| report[key].as_f64().unwrap();
    let dense = eval(&rows);
    assert!(number(&dense, "kl_mean") < 0.02, "{dense}");

    let target = ["--selector", "input", "--target-active", "0.75"];
    succeed(&[&["sparsify", &rows, "-o", &sparse], &target[..], &calibration].concat());
    let found = eval(&sparse);
    assert!(number(&found, "kl_mean") < 0.1, "{found}");
    let [all, active] = [&dense, &found].map(|report| number(report, "weight_bytes_per_token"));
    assert!(active < 0.95 * all, "{active} of {all}");
    assert!(!succeed(&["generate", "-m", &sparse, "--prompt", PROMPT, "-n", "8"]).trim().is_empty());

    // A neuron has no row there.
    let says = "needs a row of each neuron, but the weights have a row of each input: use input or dense";
    fail(1, &["generate", "-m", &rows, "-p", PROMPT, "--selector", "gate:sparsity=0.5"], &[says]);
    let says = &["is quantised to int4"];
    fail(1, &[&["sparsify", &rows, "-o", &gates, "--selector", "gate"], &calibration[..]].concat(), says);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
}

#[test]
fn nothing_but_results_is_printed() {
    let dir = tempfile::tempdir().unwrap();
    let (demo, text, out) = (demo(), text(), dir.path().join("out"));
    let args = ["quantize", "--method", "rtn", "--max-tokens", "1000", "-m"];
    let output = sparrow(&args).arg(demo).arg("--text").arg(text).arg("-o").arg(out).output().unwrap();
    assert!(output.status.success());
    assert_eq!(stderr(&output), "");
}
