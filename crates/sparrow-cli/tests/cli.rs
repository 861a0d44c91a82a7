//! The `sparrow` command as a user runs it: the built binary, its output and its exit codes.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

const PROMPT: &str = "Once upon a time there was";

fn demo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/demo")
}

fn text() -> PathBuf {
    demo().join("sample.txt")
}

/// The command, away from the user's cache and the network.
fn sparrow(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sparrow"));
    command.args(args).env("HF_HUB_OFFLINE", "1").env("HF_HOME", "/nonexistent").env_remove("HF_ENDPOINT");
    command
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// Runs to success and gives stdout.
#[track_caller]
fn succeed(args: &[&str]) -> String {
    let output = sparrow(args).output().unwrap();
    assert!(output.status.success(), "{args:?}: {}\n{}", output.status, stderr(&output));
    stdout(&output)
}

/// Runs to success and gives stdout as JSON.
#[track_caller]
fn json(args: &[&str]) -> Value {
    let text = succeed(args);
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{args:?}: {e} in {text}"))
}

/// Runs to an error: that exit code, nothing on stdout, no panic, and all of `says` on stderr, which is returned.
#[track_caller]
fn fail(code: i32, args: &[&str], says: &[&str]) -> String {
    let output = sparrow(args).output().unwrap();
    refused(&output, code, says)
}

#[track_caller]
fn refused(output: &Output, code: i32, says: &[&str]) -> String {
    let message = stderr(output);
    assert_eq!(output.status.code(), Some(code), "{message}");
    assert_eq!(stdout(output), "", "{message}");
    assert!(!message.contains("panicked"), "{message}");
    for part in says {
        assert!(message.contains(part), "{message:?} does not say {part:?}");
    }
    message
}

#[track_caller]
fn keys(value: &Value) -> Vec<&str> {
    value.as_object().unwrap_or_else(|| panic!("{value} is no object")).keys().map(String::as_str).collect()
}

#[track_caller]
fn has_keys(value: &Value, expected: &[&str]) {
    for key in expected {
        assert!(keys(value).contains(key), "no {key} in {value}");
    }
}

#[test]
fn every_command_has_help() {
    let all = succeed(&["--help"]);
    for command in
        ["generate", "bench", "experiments", "eval", "profile", "sparsify", "prune", "inspect", "doctor", "synth"]
    {
        assert!(all.contains(command), "{all}");
        let help = succeed(&[command, "--help"]);
        assert!(help.contains("Usage:") && help.contains("--help"), "{help}");
    }
    assert!(!all.contains("bench-worker"), "{all}");
    assert!(succeed(&["--version"]).contains(env!("CARGO_PKG_VERSION")));
    fail(2, &["nonsense"], &["nonsense", "--help"]);
}

#[test]
fn generate_puts_text_on_stdout_and_timings_on_stderr() {
    let output = sparrow(&["generate", "--prompt", PROMPT, "-n", "12"]).output().unwrap();
    let (out, err) = (stdout(&output), stderr(&output));
    assert!(output.status.success(), "{err}");
    assert!(!out.trim().is_empty() && out.ends_with('\n'), "{out:?}");
    assert!(!out.contains("tok/s") && !out.contains("selector"), "{out:?}");
    assert!(!out.contains(PROMPT), "the prompt is not repeated: {out:?}");
    for part in ["prompt", "tok/s", "--max-new-tokens 12", "selector dense", "threads"] {
        assert!(err.contains(part), "{err:?} does not say {part:?}");
    }
    // The gate of a ReLU model loses nothing.
    assert_eq!(succeed(&["generate", "--prompt", PROMPT, "-n", "12", "--selector", "gate"]), out);
    assert_eq!(succeed(&["generate", "-m", demo().to_str().unwrap(), "--prompt", PROMPT, "-n", "12"]), out);
}

#[test]
fn generate_reads_prompts_from_files_and_standard_input() {
    let expected = succeed(&["generate", "--prompt", PROMPT, "-n", "8"]);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("prompt.txt");
    std::fs::write(&file, PROMPT).unwrap();
    assert_eq!(succeed(&["generate", "--prompt-file", file.to_str().unwrap(), "-n", "8"]), expected);

    let mut command = sparrow(&["generate", "--prompt-file", "-", "-n", "8"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(PROMPT.as_bytes()).unwrap();
    assert_eq!(stdout(&child.wait_with_output().unwrap()), expected);

    fail(1, &["generate", "--prompt-file", "/nonexistent/prompt.txt"], &["/nonexistent/prompt.txt"]);
    std::fs::write(&file, [0xff, 0xfe]).unwrap();
    fail(1, &["generate", "--prompt-file", file.to_str().unwrap()], &["prompt.txt", "UTF-8"]);
    fail(2, &["generate"], &["--prompt", "--prompt-file"]);
    fail(2, &["generate", "--prompt", "a", "--prompt-file", "b"], &["cannot be used with"]);
}

#[test]
fn generate_stops_where_it_is_told() {
    let whole = succeed(&["generate", "--prompt", PROMPT, "-n", "40"]);
    let stop = whole.split_whitespace().nth(5).expect("a few words");
    let output = sparrow(&["generate", "--prompt", PROMPT, "-n", "40", "--stop", stop]).output().unwrap();
    let (before, _) = whole.split_once(stop).unwrap();
    assert_eq!(stdout(&output), format!("{before}\n"));
    assert!(stderr(&output).contains(&format!("stopped at {stop:?}")), "{}", stderr(&output));
    // Far more tokens than fit end with the context, or earlier with the text: no memory is taken for them.
    let output = sparrow(&["generate", "--prompt", PROMPT, "-n", &usize::MAX.to_string()]).output().unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    assert!(stderr(&output).contains("stopped"), "{}", stderr(&output));
    assert_eq!(succeed(&["generate", "--prompt", PROMPT, "-n", "0"]).trim(), "");
}

#[test]
fn generate_repeats_a_seed() {
    let run = |seed: &str| succeed(&["generate", "--prompt", PROMPT, "-n", "24", "--temperature", "1", "--seed", seed]);
    assert_eq!(run("1"), run("1"));
    assert_ne!(run("1"), run("2"));
}

#[test]
fn generate_refuses_what_it_cannot_do() {
    let long = "word ".repeat(3000);
    fail(1, &["generate", "--prompt", &long], &["the prompt is too long", "context of 512"]);
    fail(2, &["generate", "--prompt", "a", "--selector", "magic"], &["unknown selector", "magic", "dense", "lowrank"]);
    fail(2, &["generate", "--prompt", "a", "--selector", "gate:fixed"], &["no value", "fixed=T"]);
    fail(2, &["generate", "--prompt", "a", "--selector", "gate:quantile=2"], &["quantile", "below 1"]);
    fail(1, &["generate", "--prompt", "a", "--selector", "lowrank"], &["lowrank", "sparrow sparsify"]);
    fail(1, &["generate", "--prompt", "a", "--temperature=-1"], &["temperature", "-1"]);
    fail(1, &["generate", "--prompt", "a", "--top-p", "0"], &["top_p", "above 0"]);
    fail(2, &["generate", "--prompt", "a", "--threads", "0"], &["--threads"]);
    fail(1, &["generate", "--prompt", "a", "-m", "/nonexistent/model"], &["/nonexistent/model", "is not a directory"]);
    fail(1, &["inspect", "./no-such-model"], &["./no-such-model", "is not a directory"]);
    fail(1, &["inspect", text().to_str().unwrap()], &["sample.txt", "is not a directory"]);
    let empty = tempfile::tempdir().unwrap();
    fail(1, &["inspect", empty.path().to_str().unwrap()], &["has no config.json"]);
}

#[test]
fn a_missing_file_is_named_with_its_cause_once() {
    let message = fail(1, &["eval", "--text", "/nonexistent/text"], &["/nonexistent/text: "]);
    let cause = std::fs::read("/nonexistent/text").unwrap_err().to_string();
    assert_eq!(message.matches(&cause).count(), 1, "{message}");
}

#[test]
fn hub_ids_fail_at_once_offline_and_say_where_to_put_the_model() {
    let home = tempfile::tempdir().unwrap();
    let start = Instant::now();
    let run = |args: &[&str]| sparrow(args).env("HF_HOME", home.path()).output().unwrap();
    let place = home.path().join("hub/models--org--name/snapshots/main");
    let says = ["org/name", "HF_HUB_OFFLINE", "pass its directory", place.to_str().unwrap()];
    refused(&run(&["generate", "--model", "org/name", "--prompt", "a"]), 1, &says);
    refused(&run(&["inspect", "org/name"]), 1, &says);
    refused(&run(&["inspect", "org/name@v2"]), 1, &["org/name@v2", "snapshots/v2"]);
    refused(&run(&["inspect", "org/name@../../.."]), 1, &["branch, a tag or a commit"]);
    refused(&run(&["inspect", "org/name@"]), 1, &["branch, a tag or a commit"]);
    // Nothing listens there: what a machine without a route to the hub sees.
    let mut unreachable = sparrow(&["inspect", "org/name"]);
    unreachable.env("HF_HOME", home.path()).env("HF_HUB_OFFLINE", "0").env("HF_ENDPOINT", "http://127.0.0.1:9");
    refused(
        &unreachable.output().unwrap(),
        1,
        &["asking the hub failed", "pass its directory", place.to_str().unwrap()],
    );
    assert!(start.elapsed() < Duration::from_secs(20), "took {:?}", start.elapsed());
}

#[test]
fn a_hub_that_never_answers_is_given_up() {
    let home = tempfile::tempdir().unwrap();
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", silent.local_addr().unwrap());
    let start = Instant::now();
    let mut command = sparrow(&["inspect", "org/name"]);
    command.env("HF_HOME", home.path()).env("HF_HUB_OFFLINE", "0").env("HF_ENDPOINT", endpoint);
    refused(&command.output().unwrap(), 1, &["did not answer within", "pass its directory"]);
    assert!(start.elapsed() < Duration::from_secs(20), "took {:?}", start.elapsed());
}

#[test]
fn hub_ids_load_from_the_cache() {
    let home = tempfile::tempdir().unwrap();
    let repo = home.path().join("hub/models--org--demo");
    let commit = "0123456789abcdef0123456789abcdef01234567";
    let snapshot = repo.join("snapshots").join(commit);
    std::fs::create_dir_all(&snapshot).unwrap();
    std::fs::create_dir_all(repo.join("refs")).unwrap();
    std::fs::write(repo.join("refs/main"), commit).unwrap();
    let run = |model: &str| {
        let args = ["generate", "--model", model, "--prompt", PROMPT, "-n", "4"];
        sparrow(&args).env("HF_HOME", home.path()).output().unwrap()
    };
    std::fs::copy(demo().join("config.json"), snapshot.join("config.json")).unwrap();
    refused(&run("org/demo"), 1, &["only a part of it", commit]);
    for name in ["model.safetensors", "tokenizer.json", "generation_config.json"] {
        std::fs::copy(demo().join(name), snapshot.join(name)).unwrap();
    }
    let expected = succeed(&["generate", "--prompt", PROMPT, "-n", "4"]);
    assert_eq!(stdout(&run("org/demo")), expected);
    assert_eq!(stdout(&run("org/demo@main")), expected);
    assert_eq!(stdout(&run(&format!("org/demo@{commit}"))), expected);
    refused(&run("org/demo@other"), 1, &["org/demo@other", "not in the cache"]);
}

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

#[test]
fn eval_measures_quality() {
    let value = json(&["eval", "--max-tokens", "600", "--format", "json"]);
    let figures =
        ["tokens", "perplexity", "dense_perplexity", "kl_mean", "kl_p99", "top1_agreement", "active_fraction"];
    has_keys(&value, &figures);
    for figure in figures {
        assert!(value[figure].as_f64().unwrap().is_finite(), "{figure}: {value}");
    }
    assert!(value["kl_mean"].as_f64().unwrap().abs() < 1e-6, "the gate of a ReLU model is exact: {value}");
    assert!(value["active_fraction"].as_f64().unwrap() < 0.5, "{value}");
    let text = text();
    let args = ["eval", "--max-tokens", "300", "--selector", "gate:top-k=8", "--text", text.to_str().unwrap()];
    assert!(succeed(&args).contains("perplexity"));
    fail(1, &["eval", "--text", "/nonexistent.txt"], &["/nonexistent.txt"]);
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("empty.txt"), "").unwrap();
    fail(1, &["eval", "--text", dir.path().join("empty.txt").to_str().unwrap()], &["token"]);
}

#[test]
fn eval_compares_with_another_model() {
    let dir = tempfile::tempdir().unwrap();
    let (demo, text) = (demo(), text());
    let (demo, text) = (demo.to_str().unwrap(), text.to_str().unwrap());
    let pruned = dir.path().join("pruned");
    let pruned = pruned.to_str().unwrap();
    succeed(&["prune", "-m", demo, "-o", pruned, "--method", "magnitude", "--sparsity", "0.5", "--text", text]);
    let eval = |options: &[&str]| {
        json(&[&["eval", "--max-tokens", "600", "--window", "200", "--format", "json"], options].concat())
    };
    let compared = eval(&["-m", pruned, "--reference", demo]);
    assert_eq!((&compared["selector"], &compared["reference"]), (&"dense".into(), &demo.into()));
    assert!(compared["kl_mean"].as_f64().unwrap() > 1e-3, "{compared}");
    assert!(compared["top1_agreement"].as_f64().unwrap() < 1.0, "{compared}");
    // Each figure of perplexity is what its model has by itself.
    for (figure, model) in [("perplexity", pruned), ("dense_perplexity", demo)] {
        assert_eq!(compared[figure], eval(&["-m", model, "--selector", "dense"])["perplexity"], "{figure}");
    }
    let same = eval(&["-m", demo, "--reference", demo]);
    assert_eq!(
        (&same["selector"], &same["kl_mean"], &same["top1_agreement"]),
        (&"dense".into(), &0.0.into(), &1.0.into())
    );
    assert!(succeed(&["eval", "-m", pruned, "--reference", demo]).contains(&format!("{demo}, dense, as stored")));

    let tokenizer = dir.path().join("pruned/tokenizer.json");
    let other = std::fs::read_to_string(&tokenizer).unwrap().replace("<|endoftext|>", "<|end|>");
    std::fs::write(tokenizer, other).unwrap();
    let says = ["id 0", "\"<|endoftext|>\"", "\"<|end|>\"", "need the same"];
    fail(1, &["eval", "-m", pruned, "--reference", demo], &says);
    fail(1, &["eval", "--reference", "/nonexistent/model"], &["/nonexistent/model"]);
}

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
fn synth_writes_a_checkpoint_without_tokenizer() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("smol");
    let out = out.to_str().unwrap();
    succeed(&["synth", "--shape", "smollm2-135m", "-o", out]);
    let value = json(&["inspect", out, "--format", "json"]);
    assert_eq!(value["hidden_size"], 576);
    assert_eq!(value["num_layers"], 30);
    fail(1, &["generate", "-m", out, "--prompt", "a"], &["tokenizer.json", "is missing"]);
    fail(1, &["synth", "--shape", "smollm2-135m", "-o", out], &["already exists"]);
    fail(2, &["synth", "--shape", "nonsense", "-o", out], &["nonsense", "smollm2-135m"]);
    fail(2, &["synth", "--shape", "smollm2-135m", "--dtype", "int3", "-o", out], &["int3"]);
}

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

#[test]
fn sparsify_makes_a_directory_that_every_command_loads() {
    let dir = tempfile::tempdir().unwrap();
    let (demo, text) = (demo(), text());
    let (demo, text) = (demo.to_str().unwrap(), text.to_str().unwrap());
    let report = dir.path().join("report.html");
    let report = report.to_str().unwrap();
    let with_options: [(&str, &[&str]); 6] = [
        ("gate", &[]),
        ("lowrank", &["--rank", "16", "--recall", "0.9"]),
        ("lowrank", &["--rank", "0.05", "--epochs", "2", "--look-ahead", "--target-ppl", "+5%"]),
        ("sign", &["--target-active", "0.5", "--report", report]),
        ("input", &["--target-active", "0.6"]),
        ("skip", &["--target-active", "0.85"]),
    ];
    for (case, (selector, options)) in with_options.into_iter().enumerate() {
        let out = dir.path().join(case.to_string());
        let out = out.to_str().unwrap();
        let args = ["sparsify", demo, "-o", out, "--selector", selector, "--text", text, "--window", "64"];
        let args = [&args[..], options].concat();
        let file = json(&[&args[..], &["--format", "json"]].concat());
        assert!(file["method"].get(selector).is_some(), "{file}");
        let neurons = !["input", "skip"].contains(&selector);
        fail(1, &args, &["already exists"]);

        let value = json(&["inspect", out, "--format", "json"]);
        assert!(value["sparsity"]["method"].get(selector).is_some(), "{value}");
        assert!(succeed(&["inspect", out]).contains(&format!("selector {selector}")));
        let value = json(&["eval", "-m", out, "--max-tokens", "300", "--format", "json"]);
        assert_eq!(value["selector"], selector);
        assert!(value["active_fraction"].as_f64().unwrap() < 0.9, "{value}");
        assert_eq!(value["selection"].as_array().map(Vec::len), neurons.then_some(5));
        let output = sparrow(&["generate", "-m", out, "--prompt", PROMPT, "-n", "8"]).output().unwrap();
        assert!(stderr(&output).contains(&format!("selector {selector}")), "{}", stderr(&output));
        if selector == "gate" {
            assert_eq!(stdout(&output), succeed(&["generate", "--prompt", PROMPT, "-n", "8"]));
        }
        assert!(!stdout(&output).trim().is_empty());
        let again = dir.path().join("again");
        let again = again.to_str().unwrap();
        let args = ["sparsify", out, "-o", again, "--selector", selector, "--text", text];
        fail(1, &args, &["already sparsified"]);
        assert!(!Path::new(again).exists());
    }
    let page = std::fs::read_to_string(report).unwrap();
    assert!(page.contains("<svg") && page.contains("Perplexity against active fraction"), "{page}");
    assert!(!page.contains("http"), "a page of its own loads nothing");
    // Nothing but the directories and the page is left.
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 7);
    let none = dir.path().join("none");
    let none = none.to_str().unwrap();
    let refused = |selector: &str, text: &str, says: &[&str]| {
        fail(1, &["sparsify", demo, "-o", none, "--selector", selector, "--text", text], says);
        assert!(!Path::new(none).exists());
    };
    refused("gate", "/nonexistent.txt", &["/nonexistent.txt"]);
    refused("dense", text, &["dense"]);
    let short = dir.path().join("short.txt");
    std::fs::write(&short, "Too short.").unwrap();
    refused("gate", short.to_str().unwrap(), &["too few"]);
}

#[test]
fn prune_makes_a_directory_that_every_command_loads() {
    let dir = tempfile::tempdir().unwrap();
    let (demo, text) = (demo(), text());
    let (demo, text) = (demo.to_str().unwrap(), text.to_str().unwrap());
    let out = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    for (method, target) in
        [("magnitude", ["--sparsity", "0.3"]), ("wanda", ["--sparsity", "0.5"]), ("sparsegpt", ["--pattern", "2:4"])]
    {
        let out = out(method);
        let args = ["prune", "-m", demo, "-o", &out, "--method", method, "--text", text, "--window", "64"];
        let args = [&args[..], &target].concat();
        let record = json(&[&args[..], &["--format", "json"]].concat());
        let sparsity = if method == "magnitude" { 0.3 } else { 0.5 };
        assert!((record["sparsity"].as_f64().unwrap() - sparsity).abs() < 1e-4, "{record}");
        assert_eq!((&record["method"], &record["layers"].as_array().unwrap().len()), (&method.into(), &5));
        assert_eq!(record["calibration"]["tokens"] == 0, method == "magnitude", "{record}");
        has_keys(&record["quality"], &["text", "perplexity", "dense_perplexity", "kl_mean", "top1_agreement"]);
        fail(1, &args, &["already exists"]);

        assert_eq!(json(&["inspect", &out, "--format", "json"])["pruning"], record);
        let inspected = succeed(&["inspect", &out]);
        let asked = if method == "sparsegpt" { "2:4" } else { &format!("{} %", sparsity * 100.0) };
        assert!(inspected.contains(&format!("{method} to {asked}, uniform")), "{inspected}");
        assert!(
            inspected.contains("KL divergence") && inspected.contains("held-out tenth of sample.txt"),
            "{inspected}"
        );
        let tensors = |dir: &str| json(&["inspect", dir, "--format", "json"])["tensors"].clone();
        assert_eq!(tensors(&out), tensors(demo));
        assert!(!succeed(&["generate", "-m", &out, "--prompt", PROMPT, "-n", "8"]).trim().is_empty());
    }
    let again = out("again");
    let args = ["prune", "-m", &out("wanda"), "-o", &again, "--method", "wanda", "--text", text, "--window", "64"];
    let printed =
        succeed(&[&args[..], &["--sparsity", "0.7", "--allocation", "owl", "--exclude", "*k_proj*"]].concat());
    assert!(printed.contains("wanda to 70 %, owl") && printed.contains("self_attn.q_proj"), "{printed}");
    assert!(!printed.contains("k_proj"), "{printed}");
    // What is pruned can be sparsified, but not the other way round.
    let sparse = out("sparse");
    succeed(&["sparsify", &again, "-o", &sparse, "--selector", "gate", "--text", text, "--window", "64"]);
    assert_eq!(json(&["inspect", &sparse, "--format", "json"])["pruning"]["method"], "wanda");

    let none = out("none");
    let refused = |code: i32, model: &str, options: &[&str], says: &[&str]| {
        let args = ["prune", "-m", model, "-o", &none, "--text", text, "--window", "64"];
        fail(code, &[&args[..], options].concat(), says);
        assert!(!Path::new(&none).exists());
    };
    let wanda = ["--method", "wanda"];
    refused(1, &sparse, &[&wanda[..], &["--sparsity", "0.5"]].concat(), &["prune the original", "sparrow sparsify"]);
    refused(2, demo, &wanda, &["--sparsity", "--pattern"]);
    refused(2, demo, &[&wanda[..], &["--sparsity", "0.5", "--pattern", "2:4"]].concat(), &["cannot be used with"]);
    refused(2, demo, &[&wanda[..], &["--pattern", "4:4"]].concat(), &["\"4:4\" is no pattern: write N:M, as in 2:4"]);
    refused(2, demo, &["--method", "random", "--sparsity", "0.5"], &["expected one of magnitude, wanda, sparsegpt"]);
    refused(1, demo, &[&wanda[..], &["--sparsity", "0.1"]].concat(), &["sparsity: must be from 0.2 to 0.8, found 0.1"]);
    // Nothing but the directories is left.
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 5);
}

#[test]
fn a_killed_prune_goes_on_to_the_same_files() {
    let dir = tempfile::tempdir().unwrap();
    let text = dir.path().join("long.txt");
    std::fs::write(&text, std::fs::read_to_string(self::text()).unwrap().repeat(4)).unwrap();
    let demo = demo();
    let args = ["prune", "-m", demo.to_str().unwrap(), "--method", "sparsegpt", "--sparsity", "0.5"];
    let [whole, parts] = ["whole", "parts"].map(|name| dir.path().join(name));
    let command = |out: &Path| {
        let mut command = sparrow(&[&args[..], &["--text", text.to_str().unwrap()]].concat());
        command.arg("-o").arg(out).stdout(Stdio::null()).stderr(Stdio::null());
        command
    };
    assert!(command(&whole).status().unwrap().success());
    // Killed as soon as it has written another layer.
    let shard = |layer: usize| dir.path().join(format!("parts.pruning/model-{layer:05}-of-00006.safetensors"));
    for layer in [1, 3] {
        let mut child = command(&parts).spawn().unwrap();
        let start = Instant::now();
        while !shard(layer).exists() && start.elapsed() < Duration::from_secs(120) {
            std::thread::sleep(Duration::from_millis(1));
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(shard(layer).exists() && !parts.exists(), "not killed after layer {layer}");
    }
    assert!(command(&parts).status().unwrap().success());
    let files = |dir: &Path| {
        let mut names: Vec<_> = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    assert_eq!(files(&whole), files(&parts));
    for name in files(&whole) {
        assert!(std::fs::read(whole.join(&name)).unwrap() == std::fs::read(parts.join(&name)).unwrap(), "{name:?}");
    }
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 3);
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
fn an_interrupted_sparsify_leaves_no_model() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("sparse");
    let text = dir.path().join("long.txt");
    std::fs::write(&text, std::fs::read_to_string(self::text()).unwrap().repeat(50)).unwrap();
    let demo = demo();
    let args = ["sparsify", demo.to_str().unwrap(), "-o", out.to_str().unwrap(), "--selector", "lowrank"];
    for wait in [20, 300] {
        let mut command = sparrow(&[&args[..], &["--text", text.to_str().unwrap()]].concat());
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(wait));
        child.kill().unwrap();
        assert!(!child.wait().unwrap().success(), "it was done within {wait} ms");
        assert!(!out.exists(), "killed after {wait} ms, and {} is there", out.display());
    }
}

/// A limit on the size of files, below that of the weights, stands in for a disk that is full.
#[test]
#[cfg(target_os = "linux")]
fn a_full_disk_is_an_error_that_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (demo, text, out) = (demo(), text(), dir.path().join("sparse"));
    let script = "trap '' XFSZ; ulimit -f 2000; exec \"$@\"";
    let output = Command::new("sh")
        .args(["-c", script, "sh", env!("CARGO_BIN_EXE_sparrow"), "sparsify", demo.to_str().unwrap()])
        .args(["-o", out.to_str().unwrap(), "--selector", "gate", "--text", text.to_str().unwrap()])
        .output()
        .unwrap();
    let message = stderr(&output);
    assert!(!output.status.success() && message.contains("model.safetensors"), "{}: {message}", output.status);
    assert!(!message.contains("panicked"), "{message}");
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "something is left");
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
