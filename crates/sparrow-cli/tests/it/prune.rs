//! `sparrow prune`.

use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::command::{self, PROMPT, demo, fail, has_keys, json, sparrow, succeed, text};

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
    let printed = succeed(
        &[&args[..], &["--sparsity", "0.7", "--allocation", "owl", "--exclude", "*k_proj*", "--layers"]].concat(),
    );
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
    std::fs::write(&text, std::fs::read_to_string(command::text()).unwrap().repeat(4)).unwrap();
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
