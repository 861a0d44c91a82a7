//! `sparrow generate`.

use std::io::Write;
use std::process::Stdio;

use serde_json::{Value, json};

use crate::command::{PROMPT, demo, fail, sparrow, stderr, stdout, succeed, text};

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
fn several_prompts_run_together_and_are_printed_in_order() {
    let prompts = ["Once upon a time there was", "The dog", "Lily and Tom went to the park. They"];
    let alone = prompts.map(|prompt| succeed(&["generate", "--prompt", prompt, "-n", "12"]));
    let all: Vec<&str> = prompts.iter().flat_map(|prompt| ["--prompt", *prompt]).collect();
    let output = sparrow(&[&["generate", "-n", "12"], &all[..]].concat()).output().unwrap();
    assert_eq!(stdout(&output), alone.concat());
    for line in ["1: prompt", "2: prompt", "3: prompt", "selector dense"] {
        assert!(stderr(&output).contains(line), "{}", stderr(&output));
    }
    fail(1, &["generate", "--prompt", "a", "--prompt", &"word ".repeat(3000)], &["prompt 2 is too long"]);
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
fn generate_refuses_tokenizers_that_cannot_work() {
    let dir = tempfile::tempdir().unwrap();
    for file in ["config.json", "generation_config.json", "model.safetensors", "tokenizer.json"] {
        std::fs::copy(demo().join(file), dir.path().join(file)).unwrap();
    }
    let whole = std::fs::read_to_string(demo().join("tokenizer.json")).unwrap();
    // While it is loaded, while a text is encoded, and while tokens are decoded.
    let strip = json!([{ "type": "Fuse" }, { "type": "Strip", "content": " ", "start": 0, "stop": 1 }]);
    for (field, value, prompt, says) in [
        ("normalizer", json!({ "type": "Precompiled", "precompiled_charsmap": "AAAA" }), "Once", "tokenizer.json"),
        ("pre_tokenizer", json!({ "type": "FixedLength", "length": 0 }), "Once", "cannot be encoded"),
        ("decoder", json!({ "type": "Sequence", "decoders": strip }), "", "cannot be decoded"),
    ] {
        let mut tokenizer: Value = serde_json::from_str(&whole).unwrap();
        tokenizer[field] = value;
        std::fs::write(dir.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
        fail(1, &["generate", "-m", dir.path().to_str().unwrap(), "--prompt", prompt, "-n", "9"], &[says]);
    }
}
