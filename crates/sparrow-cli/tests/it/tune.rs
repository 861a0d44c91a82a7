//! `sparrow tune`.

use std::path::Path;

use crate::command::{PROMPT, demo, fail, json, sparrow, stderr, succeed, text};

#[test]
fn tune_writes_what_keeps_the_target_and_is_faster() {
    let dir = tempfile::tempdir().unwrap();
    let (demo, text) = (demo(), text());
    let (demo, text) = (demo.to_str().unwrap(), text.to_str().unwrap());
    let out = dir.path().join("tuned");
    let out = out.to_str().unwrap();
    let tune = ["tune", "-m", demo, "-o", out, "--text", text, "--window", "64", "--max-tokens", "2000", "--runs", "1"];
    // Four bits by GPTQ cost .0015 here, 4.8 bits .0009.
    let report = json(&[&tune[..], &["--target-kl", "0.0013", "--format", "json"]].concat());

    let tried = report["tried"].as_array().unwrap();
    assert_eq!(tried[0]["setting"], "as stored");
    assert_eq!(tried[0]["quality"]["kl_mean"], 0.0);
    for name in ["as stored, gate", "Q8_0", "int8", "int4", "gptq int4"] {
        assert!(tried.iter().any(|t| t["setting"] == name), "{name}: {report}");
    }
    let mixed = tried.iter().find(|t| t["setting"].as_str().unwrap().starts_with("gptq int4 and int8, ")).unwrap();
    assert_eq!(mixed["kept"], true, "{mixed}");
    for t in tried {
        assert_eq!(t["kept"].as_bool().unwrap(), t["quality"]["kl_mean"].as_f64().unwrap() <= 0.0013, "{t}");
        assert!(t["kept"].as_bool().unwrap() || t["speed_up"].is_null(), "{t}");
    }
    // At least what loses nothing was timed; the demo's gates make it faster than dense.
    let chosen = &tried[report["chosen"].as_u64().unwrap() as usize];
    assert!(chosen["kept"].as_bool().unwrap() && chosen["speed_up"].as_f64().unwrap() > 0.0, "{chosen}");
    assert_ne!(chosen["setting"], "as stored");
    assert!(report["quality"]["kl_mean"].as_f64().unwrap() < 0.02, "{report}");

    // It runs so by default, and so does what it says of itself.
    let setting = chosen["setting"].as_str().unwrap();
    let dtype = if setting.starts_with("gptq") { "int4" } else { setting.split(',').next().unwrap() };
    let dtype = dtype.replace("as stored", "bf16");
    let output = sparrow(&["generate", "-m", out, "--prompt", PROMPT, "-n", "8"]).output().unwrap();
    let selector = if setting.contains("gate") {
        "gate"
    } else if setting.contains("input") {
        "input"
    } else {
        "dense"
    };
    assert!(stderr(&output).contains(&format!("selector {selector}")), "{setting}: {}", stderr(&output));
    let inspected = json(&["inspect", out, "--format", "json"]);
    let recorded = inspected["sparsity"]["dtype"].as_str().unwrap_or("bf16");
    assert_eq!(recorded, dtype, "{inspected}");
    // The measured quality is what the directory has.
    let evaluated = json(&["eval", "-m", out, "--max-tokens", "300", "--format", "json"]);
    assert!(evaluated["kl_mean"].as_f64().unwrap() < 0.02, "{evaluated}");
    // As it is stored, on request.
    let stored =
        json(&["eval", "-m", out, "--selector", "dense", "--dtype", "bf16", "--max-tokens", "300", "--format", "json"]);
    assert_eq!(stored["kl_mean"], 0.0);
    succeed(&["generate", "-m", out, "--weights", "cache:0.5", "--selector", "gate", "--prompt", PROMPT, "-n", "4"]);

    fail(1, &[&tune[..], &["--target-kl", "0.01"]].concat(), &["already exists"]);
    // Nothing else is left.
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn tune_refuses_what_it_cannot_do() {
    let dir = tempfile::tempdir().unwrap();
    let (demo, text) = (demo(), text());
    let (demo, text) = (demo.to_str().unwrap(), text.to_str().unwrap());
    let out = dir.path().join("tuned");
    let tune = ["tune", "-m", demo, "-o", out.to_str().unwrap(), "--text", text];
    let refused = |code: i32, options: &[&str], says: &[&str]| {
        fail(code, &[&tune[..], options].concat(), says);
        assert!(std::fs::read_dir(dir.path()).unwrap().next().is_none());
    };
    refused(2, &[], &["--target-kl", "--target-ppl"]);
    refused(2, &["--target-kl", "0.1", "--target-ppl", "+1%"], &["--target-ppl"]);
    refused(2, &["--target-kl", "0"], &["above 0"]);
    refused(2, &["--target-ppl", "1"], &["+1%"]);
    refused(1, &["--target-kl", "0.1", "--max-tokens", "20"], &["too few"]);
    assert!(Path::new(demo).exists());
}
