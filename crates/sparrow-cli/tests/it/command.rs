//! The built binary, its output and its exit codes.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

pub const PROMPT: &str = "Once upon a time there was";

pub fn demo() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/demo")
}

pub fn text() -> PathBuf {
    demo().join("sample.txt")
}

/// The command, away from the user's cache and the network.
pub fn sparrow(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sparrow"));
    command.args(args).env("HF_HUB_OFFLINE", "1").env("HF_HOME", "/nonexistent").env_remove("HF_ENDPOINT");
    command
}

pub fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// Runs to success and gives stdout.
#[track_caller]
pub fn succeed(args: &[&str]) -> String {
    let output = sparrow(args).output().unwrap();
    assert!(output.status.success(), "{args:?}: {}\n{}", output.status, stderr(&output));
    stdout(&output)
}

/// Runs to success and gives stdout as JSON.
#[track_caller]
pub fn json(args: &[&str]) -> Value {
    let text = succeed(args);
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{args:?}: {e} in {text}"))
}

/// Runs to an error: that exit code, nothing on stdout, no panic, and all of `says` on stderr, which is returned.
#[track_caller]
pub fn fail(code: i32, args: &[&str], says: &[&str]) -> String {
    let output = sparrow(args).output().unwrap();
    refused(&output, code, says)
}

#[track_caller]
pub fn refused(output: &Output, code: i32, says: &[&str]) -> String {
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
pub fn has_keys(value: &Value, expected: &[&str]) {
    for key in expected {
        assert!(keys(value).contains(key), "no {key} in {value}");
    }
}
