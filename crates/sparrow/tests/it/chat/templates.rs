//! Templates render what transformers renders: goldens.json is its word (tests/templates/generate.py).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use sha2::{Digest, Sha256};
use sparrow::Tokenizer;
use sparrow::internals::text::chat::{ChatTemplate, Conversation, Value};
use sparrow_testing::{shared_data, tiny};

/// A conversation as conversations.json has it.
#[derive(Deserialize)]
struct Case {
    messages: Value,
    tools: Option<Value>,
    documents: Option<Value>,
    add_generation_prompt: Option<bool>,
    #[serde(default)]
    variables: BTreeMap<String, Value>,
}

/// What transformers made of it: a text, a refusal by the template, or (nothing) another error.
#[derive(Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Golden {
    text: Option<String>,
    bytes: Option<usize>,
    sha256: Option<String>,
    refused: Option<String>,
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/templates")
}

fn read<T: serde::de::DeserializeOwned>(name: &str) -> T {
    serde_json::from_slice(&std::fs::read(folder().join(name)).unwrap()).unwrap()
}

/// A tokenizer with the special tokens that the goldens were made with.
fn tokenizer() -> Tokenizer {
    let dir = tempfile::tempdir().unwrap();
    tiny::write_json(&dir.path().join("tokenizer.json"), &tiny::tokenizer());
    let special = serde_json::json!({ "bos_token": "<s>", "eos_token": { "content": "</s>", "lstrip": false } });
    tiny::write_json(&dir.path().join("tokenizer_config.json"), &special);
    Tokenizer::load(dir.path()).unwrap()
}

/// The day on which the goldens were made, whenever they are compared.
fn today(format: String) -> String {
    let parts = [("%d", "29"), ("%B", "November"), ("%b", "Nov"), ("%Y", "2026")];
    parts.iter().fold(format, |text, (part, value)| text.replace(part, value))
}

fn conversation(case: Case) -> Conversation {
    let mut variables: Vec<(String, Value)> = case.variables.into_iter().collect();
    variables.push(("strftime_now".into(), Value::from_function(today)));
    Conversation {
        messages: case.messages,
        tools: case.tools,
        documents: case.documents,
        add_generation_prompt: case.add_generation_prompt.unwrap_or(true),
        variables,
    }
}

/// Compares the templates of a folder; says how many renderings there were.
fn compare(dir: &Path) -> usize {
    let mut goldens: BTreeMap<String, BTreeMap<String, Golden>> = read("goldens.json");
    let tokenizer = tokenizer();
    let mut compared = 0;
    let mut wrong = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let stem = path.file_stem().unwrap().to_str().unwrap();
        let Some(expected) = goldens.remove(stem) else { continue };
        let template = ChatTemplate::read_file(&path, &tokenizer).unwrap();
        let cases: BTreeMap<String, Case> = read("conversations.json");
        assert!(cases.keys().eq(expected.keys()), "goldens.json is older than conversations.json");
        for (name, case) in cases {
            let expected = &expected[&name];
            let found = template.render(&conversation(case)).map_err(|e| e.to_string());
            let same = match (&found, expected) {
                (Ok(found), Golden { text: Some(text), .. }) => found == text,
                (Ok(found), Golden { bytes: Some(bytes), sha256: Some(sha256), .. }) => {
                    let hash: String = Sha256::digest(found).iter().map(|byte| format!("{byte:02x}")).collect();
                    found.len() == *bytes && hash == *sha256
                }
                (Err(found), Golden { refused: Some(refused), .. }) => found.ends_with(refused),
                (Err(_), Golden { text: None, bytes: None, refused: None, .. }) => true,
                _ => false,
            };
            compared += 1;
            if !same {
                wrong.push(format!("{stem}, {name}:\n{found:?}\nexpected {expected:?}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
    compared
}

#[test]
fn own_templates_render_as_in_transformers() {
    assert!(compare(&folder().join("own")) > 50);
}

#[test]
fn published_templates_render_as_in_transformers() {
    let Some(dir) = shared_data("templates") else { return };
    assert!(compare(&dir) > 200);
}
