//! `sparrow synth`.

use crate::command::{fail, json, succeed};

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
