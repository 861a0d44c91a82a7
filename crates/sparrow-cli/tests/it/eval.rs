//! `sparrow eval`.

use crate::command::{demo, fail, has_keys, json, succeed, text};

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
    // Windows begin with a token that the text does not have, so that all of its own are predicted.
    assert_eq!((&value["bos"], &value["tokens"]), (&true.into(), &600.into()));
    let without = json(&["eval", "--max-tokens", "600", "--no-bos", "--format", "json"]);
    assert_eq!((&without["bos"], &without["tokens"]), (&false.into(), &(600 - 3).into()));
    let text = text();
    let args = ["eval", "--max-tokens", "300", "--selector", "gate:top-k=8", "--text", text.to_str().unwrap()];
    assert!(succeed(&args).contains("perplexity"));
    let args = ["eval", "--max-tokens", "300", "--selector", "gate"];
    let [short, long] = [&[][..], &["--layers"]].map(|option| succeed(&[&args[..], option].concat()));
    assert!(short.contains("active by layer") && !short.contains("layer 0"), "{short}");
    // The summary is last.
    assert!(long.contains("layer 0") && long.ends_with(&short[short.find("active by layer").unwrap()..]), "{long}");
    fail(1, &["eval", "--text", "/nonexistent.txt"], &["/nonexistent.txt"]);
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("empty.txt"), "").unwrap();
    fail(1, &["eval", "--text", dir.path().join("empty.txt").to_str().unwrap()], &["token"]);
}

#[test]
fn eval_counts_exact_answers() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("questions.jsonl");
    let path = file.to_str().unwrap();
    let write = |questions: &[(&str, &str)]| {
        let line =
            |(prompt, answer): &(&str, &str)| serde_json::json!({"prompt": prompt, "answer": answer}).to_string();
        std::fs::write(&file, questions.iter().map(line).collect::<Vec<_>>().join("\n\n")).unwrap();
    };
    // What the model writes by itself is exactly its answer; what it does not write is not.
    let written = succeed(&["generate", "-p", "Once upon a time", "-n", "12", "--temperature", "0", "--quiet"]);
    let answer = written.trim_end().strip_prefix("Once upon a time").unwrap_or(written.trim_end());
    let wrong = format!("{} elephantine", &answer[..answer.len() / 2]);
    write(&[("Once upon a time", answer), ("Once upon a time", &wrong)]);
    let args = ["eval", "--max-tokens", "300", "--answers", path];
    let value = json(&[&args[..], &["--format", "json"]].concat());
    assert_eq!(value["answers"], serde_json::json!({"questions": 2, "right": 1, "dense_right": 1}), "{answer:?}");
    assert!(succeed(&args).contains("exact answers to 2 questions: dense 1, gate 1"));
    // One neuron of a layer answers otherwise.
    let value = json(&[&args[..], &["--selector", "gate:top-k=1", "--format", "json"]].concat());
    assert_eq!(value["answers"]["dense_right"], 1);
    assert_eq!(value["answers"]["right"], 0);

    for (questions, says) in [(&[][..], "has no questions"), (&[("Once", "")], "line 1")] {
        write(questions);
        fail(1, &args, &["questions.jsonl", says]);
    }
    std::fs::write(&file, "{\"prompt\": \"Once\", \"answers\": 1}").unwrap();
    fail(1, &args, &["questions.jsonl", "line 1", "prompt", "answer"]);
    std::fs::remove_file(&file).unwrap();
    fail(1, &args, &["questions.jsonl"]);
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
