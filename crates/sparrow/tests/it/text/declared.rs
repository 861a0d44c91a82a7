//! Tokens beside `tokenizer.json`: what transformers 5.24 makes of the same files.

use std::path::Path;

use serde_json::{Value, json};
use sparrow::Tokenizer;
use sparrow_testing::*;

const TEXT: &str = "<|a|>w3  <|b|> w4<|c|>";

/// The tiny model's tokenizer with these files beside it.
fn tokenizer(files: &[(&str, Value)]) -> sparrow::Result<Tokenizer> {
    let dir = tempfile::tempdir().unwrap();
    tiny::write_model(dir.path());
    files.iter().for_each(|(name, value)| write(&dir.path().join(name), value));
    Tokenizer::load(dir.path())
}

fn write(path: &Path, value: &Value) {
    std::fs::write(path, value.to_string()).unwrap();
}

/// What a token is declared as: its text, and what differs from a special token that takes nothing along.
fn token(content: &str, flags: &[&str]) -> Value {
    let mut token = json!({ "content": content, "lstrip": false, "rstrip": false, "normalized": false, "single_word": false,
        "special": true });
    flags.iter().for_each(|flag| token[*flag] = (!token[*flag].as_bool().unwrap()).into());
    token
}

#[test]
fn ids_follow_from_the_order() {
    let n = tiny::VOCAB as u32;
    let config = |value: Value| vec![("tokenizer_config.json", value)];
    let cases = [
        (
            config(json!({ "added_tokens_decoder": { "900": token("<|a|>", &[]), "77": token("<|b|>", &[]) } })),
            ["b", "a"].as_slice(),
        ),
        (config(json!({ "additional_special_tokens": ["<|a|>", "<|b|>"] })), &["a", "b"]),
        (config(json!({ "extra_special_tokens": ["<|b|>"], "additional_special_tokens": ["<|a|>"] })), &["b"]),
        (config(json!({ "extra_special_tokens": { "image_token": "<|b|>" } })), &["b"]),
        (config(json!({ "pad_token": "<|a|>", "eos_token": "<|b|>", "bos_token": "<|c|>" })), &["c", "b", "a"]),
        (config(json!({ "cls_token": "<|a|>", "mask_token": "<|b|>", "sep_token": "<|c|>" })), &["c", "a", "b"]),
        (config(json!({ "pad_token": null, "additional_special_tokens": null, "bos_token": "" })), &[]),
        (vec![("added_tokens.json", json!({ "<|a|>": 901, "<|b|>": 900 }))], &["b", "a"]),
        (
            vec![(
                "special_tokens_map.json",
                json!({ "pad_token": "<|a|>", "eos_token": token("<|b|>", &[]),
            "additional_special_tokens": ["<|c|>"] }),
            )],
            &["b", "a", "c"],
        ),
        (
            vec![
                ("special_tokens_map.json", json!({ "pad_token": "<|a|>" })),
                ("tokenizer_config.json", json!({ "pad_token": "<|b|>" })),
            ],
            &["a"],
        ),
        (
            vec![
                ("special_tokens_map.json", json!({ "pad_token": "<|a|>" })),
                ("added_tokens.json", json!({ "<|b|>": 900 })),
                ("tokenizer_config.json", json!({ "added_tokens_decoder": {} })),
            ],
            &[],
        ),
        (
            config(
                json!({ "added_tokens_decoder": { "900": token("<|a|>", &[]) }, "additional_special_tokens": ["<|a|>", "<|b|>"],
            "pad_token": "<|c|>" }),
            ),
            &["a", "c", "b"],
        ),
    ];
    for (files, expected) in cases {
        let tokenizer = tokenizer(&files).unwrap();
        let ids = tokenizer.encode(TEXT, false).unwrap();
        for name in ["a", "b", "c"] {
            let id = expected.iter().position(|found| *found == name).map(|at| n + at as u32);
            let content = format!("<|{name}|>");
            assert_eq!(tokenizer.token_to_id(&content), id, "{content} of {files:?}");
            assert!(
                id.is_none_or(|id| ids.contains(&id) && tokenizer.id_to_token(id) == Some(content)),
                "{files:?}: {ids:?}"
            );
        }
    }
}

#[test]
fn tokens_are_what_they_were_declared_as() {
    let files = [(
        "tokenizer_config.json",
        json!({ "pad_token": "<|c|>", "eos_token": null, "image_token": "<|a|>",
        "added_tokens_decoder": { "900": token("<|a|>", &["special"]), "901": token("<|b|>", &["special", "lstrip", "rstrip"]) } }),
    )];
    let tokenizer = tokenizer(&files).unwrap();
    let id = |token: &str| tokenizer.token_to_id(token).unwrap();
    assert_eq!(
        ["pad_token", "eos_token", "image_token"].map(|name| tokenizer.special_token(name)),
        [Some("<|c|>"), None, Some("<|a|>")]
    );
    // A token with a name is special; one that is not is part of the text.
    let text = |token| tokenizer.decode(&[id(token)]).unwrap();
    assert_eq!((text("<|a|>").as_str(), text("<|b|>").as_str(), text("<|c|>").as_str()), ("", "<|b|>", ""));
    let ids = tokenizer.encode(TEXT, false).unwrap();
    assert_eq!(ids, [id("<|a|>"), id("w3"), id("<|b|>"), id("w4"), id("<|c|>")]);
}

#[test]
fn malformed_declarations_name_file_and_field() {
    for (name, value, field) in [
        ("tokenizer_config.json", json!([]), "object"),
        ("tokenizer_config.json", json!({ "added_tokens_decoder": [] }), "added_tokens_decoder"),
        (
            "tokenizer_config.json",
            json!({ "added_tokens_decoder": { "x": token("<|a|>", &[]) } }),
            "added_tokens_decoder",
        ),
        ("tokenizer_config.json", json!({ "added_tokens_decoder": { "1": {} } }), "added_tokens_decoder"),
        ("tokenizer_config.json", json!({ "bos_token": 5 }), "bos_token"),
        ("tokenizer_config.json", json!({ "additional_special_tokens": "<|a|>" }), "additional_special_tokens"),
        ("special_tokens_map.json", json!({ "extra_special_tokens": [1] }), "extra_special_tokens"),
        ("added_tokens.json", json!({ "<|a|>": "x" }), "<|a|>"),
    ] {
        let message = tokenizer(&[(name, value)]).unwrap_err().to_string();
        assert!(message.contains(name) && message.contains(field), "{message}");
    }
}

#[test]
fn what_training_saved_is_not_done_to_texts() {
    let dir = tempfile::tempdir().unwrap();
    tiny::write_model(dir.path());
    let path = dir.path().join("tokenizer.json");
    let plain = Tokenizer::load(dir.path()).unwrap();
    let mut file: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    file["truncation"] = json!({ "direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0 });
    file["padding"] = json!({ "strategy": { "Fixed": 32 }, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0,
        "pad_type_id": 0, "pad_token": "w0" });
    write(&path, &file);
    let text = "w3 w4 ".repeat(9);
    let ids = Tokenizer::load(dir.path()).unwrap().encode(&text, true).unwrap();
    assert_eq!(ids, plain.encode(&text, true).unwrap());
}
