use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use sparrow_testing::tiny::{self, write, write_json};

use super::{case, check};

#[test]
fn directories() {
    let gone = |dir: &Path| fs::remove_dir_all(dir).unwrap();
    check(vec![
        case("no directory", gone, &["model", "is not a directory", "Hugging Face model directory"]),
        case(
            "a file instead of a directory",
            move |d| {
                gone(d);
                write(d, "text");
            },
            &["model", "is not a directory"],
        ),
        case(
            "an empty directory",
            move |d| {
                gone(d);
                fs::create_dir(d).unwrap();
            },
            &["model", "has no config.json"],
        ),
    ]);
}

#[test]
fn tokenizers() {
    const FILE: &str = "tokenizer.json";
    let edited = |key: &'static str, value: Value| {
        move |dir: &Path| {
            let mut tokenizer = tiny::tokenizer();
            tokenizer[key] = value.clone();
            write_json(&dir.join(FILE), &tokenizer);
        }
    };
    check(vec![
        case("missing", |d| fs::remove_file(d.join(FILE)).unwrap(), &[FILE, "is missing"]),
        case("empty", |d| write(&d.join(FILE), ""), &["tokenizer", FILE]),
        case("not JSON", |d| write(&d.join(FILE), "{\"model\":"), &["tokenizer", FILE]),
        case("an array", |d| write(&d.join(FILE), "[]"), &["tokenizer", FILE]),
        case("not UTF-8", |d| write(&d.join(FILE), [0xff, 0xfe]), &["tokenizer", FILE]),
        case("no model", edited("model", Value::Null), &["tokenizer", FILE]),
        case("unknown model", edited("model", json!({ "type": "Words" })), &["tokenizer", FILE]),
        case("version a number", edited("version", json!(2)), &["tokenizer", FILE]),
        case("unknown pre-tokenizer", edited("pre_tokenizer", json!({ "type": "?" })), &["tokenizer", FILE]),
        case(
            "another model's",
            edited("model", json!({ "type": "WordLevel", "vocab": { "w3": 99, "w0": 0 }, "unk_token": "w0" })),
            &["id 99", "vocabulary of 16", "another model's"],
        ),
    ]);
}
