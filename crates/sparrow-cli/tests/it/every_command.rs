//! What all commands have in common: help, errors, pipes, and where weights and caches are.

use std::process::Stdio;

use serde_json::Value;

use crate::command::{PROMPT, demo, fail, has_keys, json, sparrow, stderr, stdout, succeed, text};

#[test]
fn every_command_has_help() {
    let all = succeed(&["--help"]);
    for command in [
        "generate",
        "chat",
        "bench",
        "experiments",
        "eval",
        "profile",
        "sparsify",
        "tune",
        "prune",
        "quantize",
        "inspect",
        "doctor",
        "synth",
    ] {
        assert!(all.contains(command), "{all}");
        let help = succeed(&[command, "--help"]);
        assert!(help.contains("Usage:") && help.contains("--help"), "{help}");
    }
    assert!(!all.contains("bench-worker"), "{all}");
    assert!(succeed(&["--version"]).contains(env!("CARGO_PKG_VERSION")));
    fail(2, &["nonsense"], &["nonsense", "--help"]);
}

#[test]
fn notes_are_written_where_they_can_be_silenced() {
    let source = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let (mut open, mut seen) = (vec![source.clone()], 0);
    while let Some(path) = open.pop() {
        if path.is_dir() {
            open.extend(std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()));
            continue;
        }
        seen += 1;
        // Where errors are printed, where `note!` is defined, and where a worker's errors are passed on.
        let allowed = ["main.rs", "output.rs", "bench/worker.rs"].map(|name| source.join(name));
        let silent = allowed.contains(&path) || !std::fs::read_to_string(&path).unwrap().contains("eprintln!");
        assert!(silent, "{}: use note!, which --quiet silences", path.display());
    }
    assert!(seen > 30, "{seen} files");
}

#[test]
fn a_missing_file_is_named_with_its_cause_once() {
    let message = fail(1, &["eval", "--text", "/nonexistent/text"], &["/nonexistent/text: "]);
    let cause = std::fs::read("/nonexistent/text").unwrap_err().to_string();
    assert_eq!(message.matches(&cause).count(), 1, "{message}");
}

#[test]
fn weights_run_from_memory_and_from_a_cache() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("sparse");
    let (demo, text, out) = (demo(), text(), out.to_str().unwrap());
    let (demo, text) = (demo.to_str().unwrap(), text.to_str().unwrap());
    succeed(&["sparsify", demo, "-o", out, "--selector", "gate", "--text", text, "--window", "64"]);
    let generate = ["generate", "-m", out, "--prompt", PROMPT, "-n", "16", "--weights"];
    let expected = succeed(&[&generate[..], &["mmap"]].concat());
    for place in ["ram", "cache:0.3", "cache:0.02,exact", "cache:1,window=4,mmap"] {
        let output = sparrow(&[&generate[..], &[place]].concat()).output().unwrap();
        assert!(output.status.success(), "{place}: {}", stderr(&output));
        assert_eq!(stdout(&output), expected, "{place}");
        assert_eq!(stderr(&output).contains("read per step"), place.starts_with("cache"), "{place}");
    }
    let eval = ["eval", "-m", out, "--max-tokens", "300", "--format", "json", "--weights"];
    let [mapped, cached] = ["mmap", "cache:0.3"].map(|place| json(&[&eval[..], &[place]].concat()));
    let [a, b] = [&mapped, &cached].map(|report| report["perplexity"].as_f64().unwrap());
    assert!((a / b - 1.0).abs() < 1e-4, "{a} {b}");
    assert!(!mapped["selection"].is_null() && cached["selection"].is_null());

    let places = ["--weights", "mmap", "--weights", "cache:0.3"];
    let sizes = ["--prompt-tokens", "12", "--gen-tokens", "6", "--format", "json"];
    let report = json(&[&["bench", "-m", out, "-s", "gate", "--runs", "1"], &places[..], &sizes].concat());
    let rows = report["rows"].as_array().unwrap();
    assert_eq!(rows.len(), 2);
    for (row, place) in rows.iter().zip(["mmap", "cache:0.3,lru"]) {
        assert_eq!(row["weights"], place);
        assert_eq!(row["cache_bytes_per_token"].as_f64().unwrap() > 0.0, place != "mmap");
        has_keys(row, &["storage_bytes_per_token", "major_faults_per_token", "peak_rss_bytes"]);
    }
    json(&[&["profile", "-m", out, "-s", "gate"], &places[..], &sizes].concat());

    fail(
        1,
        &["generate", "-m", demo, "--prompt", PROMPT, "--weights", "cache:0.3"],
        &["sparrow sparsify", "neuron by neuron"],
    );
    for (place, says) in [
        ("cache:0", "at most 1, found 0"),
        ("cache:1.5", "found 1.5"),
        ("cache:NaN", "found NaN"),
        ("disk", "cache:FRACTION"),
    ] {
        fail(2, &[&generate[..], &[place]].concat(), &["--weights", says]);
    }
}

#[test]
fn caches_can_be_sparse() {
    let sparse = ["--kv-sparsity", "k=0.3,v=0.5", "--kv-dense-tail", "16", "--kv-sinks", "4"];
    let with = |args: &[&'static str]| [args, &sparse[..]].concat();
    let eval =
        json(&with(&["eval", "--window", "512", "--max-tokens", "512", "--selector", "dense", "--format", "json"]));
    assert_eq!(eval["kv_sparsity"], "k=0.3,v=0.5");
    assert!(eval["kv_bytes"].as_f64().unwrap() < 0.9 * eval["dense_kv_bytes"].as_f64().unwrap(), "{eval}");
    assert!(eval["kl_mean"].as_f64().unwrap() > 0.0, "{eval}");
    // A short cache would be no smaller: what is dense has room for the tail and two blocks.
    let sizes = ["--prompt-tokens", "440", "--gen-tokens", "60", "--runs", "1"];
    let bench = [&["bench", "--selector", "dense", "--format", "json"], &sizes[..]].concat();
    let bytes = |report: Value| report["rows"][0]["kv_bytes"].as_f64().unwrap();
    assert!(bytes(json(&with(&bench))) < bytes(json(&bench)));
    let profile = json(&with(&[
        "profile",
        "--selector",
        "dense",
        "--prompt-tokens",
        "80",
        "--gen-tokens",
        "90",
        "--format",
        "json",
    ]));
    assert!(profile[0]["decode"]["pack kv"]["max"].as_f64().unwrap() > 0.0, "{profile}");
    assert!(!succeed(&with(&["generate", "--prompt", PROMPT, "-n", "100"])).is_empty());
    fail(
        2,
        &["generate", "--prompt", PROMPT, "--kv-sparsity", "k=2"],
        &["--kv-sparsity", "k=FRACTION,v=FRACTION", "found \"k=2\""],
    );
    fail(2, &["generate", "--prompt", PROMPT, "--kv-sinks", "4"], &["--kv-sparsity"]);
}

#[test]
#[cfg(unix)]
fn a_closed_pipe_is_no_error() {
    for args in [
        &["inspect"][..],
        &["inspect", "--format", "json"],
        &["generate", "--prompt", PROMPT, "-n", "400"],
        &["eval", "--max-tokens", "64", "--format", "json"],
        &["doctor", "--format", "json"],
        &["eval", "--max-tokens", "64"],
        &["doctor"],
        &["profile", "--prompt-tokens", "8", "--gen-tokens", "2"],
        &["bench", "--prompt-tokens", "8", "--gen-tokens", "2", "--runs", "1"],
    ] {
        // The reading end is closed before the command has anything to write.
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = sparrow(args).stdout(writer).stderr(Stdio::piped()).spawn().unwrap().wait_with_output().unwrap();
        let message = stderr(&output);
        assert!(output.status.success(), "{args:?}: {}: {message}", output.status);
        assert!(!message.contains("panicked") && !message.contains("sparrow:"), "{args:?}: {message}");
    }
}
