//! `sparrow sparsify`.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::command::{self, PROMPT, demo, fail, json, sparrow, stderr, stdout, succeed, text};

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
fn an_interrupted_sparsify_leaves_no_model() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("sparse");
    let text = dir.path().join("long.txt");
    std::fs::write(&text, std::fs::read_to_string(command::text()).unwrap().repeat(50)).unwrap();
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
