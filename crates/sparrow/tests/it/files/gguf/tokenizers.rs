//! Tokenizers made from the vocabulary of a file cut text as those do that the vocabulary is from.

use std::path::{Path, PathBuf};

use serde_json::Value as Json;
use sparrow::Tokenizer;
use sparrow::internals::checkpoint::ModelFiles;
use sparrow_testing::gguf::{GgufFile, Value};

use super::written;

/// A small vocabulary of byte pairs.
pub fn byte_level(pre: &str) -> GgufFile {
    let mut file = GgufFile::default();
    let mut tokens: Vec<String> = ["<|bos|>", "<|im_end|>", "<tool>"].map(String::from).to_vec();
    tokens.extend("abcdeĠ0123456789'sÃ©".chars().map(String::from));
    let merges = ["a b", "ab c", "Ġ a", "Ġ d", "Ġ ab", "0 1", "01 2", "' s", "Ã ©"];
    tokens.extend(merges.iter().map(|merge| merge.replace(' ', "")));
    let kinds = (0..tokens.len()).map(|id| [3, 3, 4].get(id).copied().unwrap_or(1)).collect();
    file.set("tokenizer.ggml.model", Value::Text("gpt2".into()))
        .set("tokenizer.ggml.pre", Value::Text(pre.into()))
        .set("tokenizer.ggml.tokens", Value::Texts(tokens))
        .set("tokenizer.ggml.token_type", Value::I32s(kinds))
        .set("tokenizer.ggml.merges", Value::Texts(merges.map(String::from).to_vec()))
        .set("tokenizer.ggml.bos_token_id", Value::U32(0))
        .set("tokenizer.ggml.eos_token_id", Value::U32(1));
    file
}

fn pieces(tokenizer: &Tokenizer, text: &str) -> Vec<String> {
    let ids = tokenizer.encode(text, true).unwrap();
    ids.iter().map(|&id| tokenizer.decode(&[id]).unwrap()).collect()
}

#[test]
fn byte_pairs() {
    let read = |file: &GgufFile| {
        let (_dir, path) = written(file);
        Tokenizer::load(&path).unwrap()
    };
    let digits = read(&byte_level("smollm"));
    assert_eq!(pieces(&digits, "abc ab dé012's"), ["abc", " ab", " d", "é", "0", "1", "2", "'s"]);
    assert_eq!(pieces(&read(&byte_level("gpt-2")), "012 a"), ["012", " a"]);
    // Text comes back, special tokens do not; tokens that its makers defined are text.
    let ids = digits.encode("ab<|im_end|>c<tool>d", false).unwrap();
    assert!(ids.contains(&1) && ids.contains(&2));
    assert_eq!(digits.decode(&ids).unwrap(), "abc<tool>d");
    // Beginning of sequence: where the file says so, or where its kind of vocabulary always has one.
    let first = |file: &GgufFile| read(file).encode("ab", true).unwrap()[0];
    assert_ne!(first(&byte_level("qwen2")), 0);
    assert_eq!(first(&byte_level("llama-bpe")), 0);
    assert_eq!(first(byte_level("qwen2").set("tokenizer.ggml.add_bos_token", Value::Bool(true))), 0);
    assert_ne!(first(byte_level("llama-bpe").set("tokenizer.ggml.add_bos_token", Value::Bool(false))), 0);
    let ends =
        read(byte_level("qwen2").set("tokenizer.ggml.add_eos_token", Value::Bool(true))).encode("ab", true).unwrap();
    assert_eq!(ends.last(), Some(&1));
}

#[test]
fn companions() {
    let mut file = byte_level("qwen2");
    file.set("tokenizer.chat_template", Value::Text("{{ messages }}".into()));
    let json = |file: &GgufFile, name: &str| {
        let (_dir, path) = written(file);
        ModelFiles::open(&path).unwrap().json(name).unwrap().unwrap()
    };
    let config = json(&file, "tokenizer_config.json");
    assert_eq!((&config["chat_template"], &config["bos_token"]), (&"{{ messages }}".into(), &"<|bos|>".into()));
    assert_eq!(json(&file, "generation_config.json")["eos_token_id"], Json::from(vec![1]));
    file.set("tokenizer.chat_templates", Value::Texts(vec!["tool_use".into()]))
        .set("tokenizer.chat_template.tool_use", Value::Text("tools".into()))
        .set("tokenizer.ggml.eos_token_id", Value::U32(0))
        .set("tokenizer.ggml.eot_token_id", Value::U32(2));
    assert_eq!(json(&file, "tokenizer_config.json")["chat_template"][1]["name"], "tool_use");
    assert_eq!(json(&file, "generation_config.json")["eos_token_id"], Json::from(vec![0, 2, 1]));
}

fn shared(name: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data").join(name);
    if !path.exists() {
        eprintln!("skipped: needs ../shared/data/{name}");
        return None;
    }
    Some(path)
}

/// A file with the vocabulary of a SentencePiece `tokenizer.json`.
fn sentence_piece(tokenizer: &Json) -> GgufFile {
    let vocab = tokenizer["model"]["vocab"].as_object().unwrap();
    let added = tokenizer["added_tokens"].as_array().unwrap();
    let id = |json: &Json| json.as_u64().unwrap() as usize;
    let size = vocab.values().map(id).chain(added.iter().map(|token| id(&token["id"]))).max().unwrap() + 1;
    let (mut tokens, mut kinds) = (vec![String::new(); size], vec![1; size]);
    for (token, at) in vocab {
        tokens[id(at)] = token.clone();
        kinds[id(at)] = if token.len() == 6 && token.starts_with("<0x") { 6 } else { 1 };
    }
    for token in added {
        let at = id(&token["id"]);
        tokens[at] = token["content"].as_str().unwrap().into();
        kinds[at] = match (at, token["special"].as_bool()) {
            (0, _) => 2,
            (_, Some(true)) => 3,
            _ => 4,
        };
    }
    // The better a piece, the earlier its first merge.
    let mut ranks = std::collections::HashMap::new();
    for (rank, merge) in tokenizer["model"]["merges"].as_array().unwrap().iter().enumerate() {
        let joined = match merge {
            Json::String(pair) => pair.replacen(' ', "", 1),
            pair => format!("{}{}", pair[0].as_str().unwrap(), pair[1].as_str().unwrap()),
        };
        ranks.entry(joined).or_insert(rank);
    }
    let scores = tokens.iter().map(|token| ranks.get(token).map_or(0.0, |&rank| -(rank as f32))).collect();
    let mut file = GgufFile::default();
    file.set("general.architecture", Value::Text("llama".into()))
        .set("tokenizer.ggml.model", Value::Text("llama".into()))
        .set("tokenizer.ggml.tokens", Value::Texts(tokens))
        .set("tokenizer.ggml.scores", Value::F32s(scores))
        .set("tokenizer.ggml.token_type", Value::I32s(kinds))
        .set("tokenizer.ggml.bos_token_id", Value::U32(1))
        .set("tokenizer.ggml.eos_token_id", Value::U32(2))
        .set("tokenizer.ggml.unknown_token_id", Value::U32(0));
    file
}

#[test]
fn pieces_with_scores() {
    for (name, ids_of) in [("llama2", "llama-spm"), ("phi-3", "phi-3")] {
        let Some(dir) = shared(&format!("tokenizers/{name}")) else { return };
        let json = serde_json::from_slice(&std::fs::read(dir.join("tokenizer.json")).unwrap()).unwrap();
        let (_made, path) = written(&sentence_piece(&json));
        let (made, original) = (Tokenizer::load(&path).unwrap(), Tokenizer::load(&dir).unwrap());
        // The library whose format it is publishes texts with their ids.
        let list =
            |end: &str| std::fs::read_to_string(dir.with_file_name(format!("ggml-vocab-{ids_of}.gguf.{end}"))).unwrap();
        let (texts, ids) = (list("inp"), list("out"));
        let texts: Vec<&str> = texts.split("\n__ggml_vocab_test__\n").collect();
        assert!(texts.len() > 40);
        for (text, ids) in texts.iter().zip(ids.lines()) {
            let expected: Vec<u32> = ids.split_whitespace().map(|id| id.parse().unwrap()).collect();
            assert_eq!(made.encode(text, false).unwrap(), expected, "{name}: {text:?}");
        }
        let story = std::fs::read_to_string(shared("text/ulysses.md").unwrap()).unwrap();
        for line in story.lines().step_by(20) {
            assert_eq!(made.encode(line, false).unwrap(), original.encode(line, false).unwrap(), "{name}: {line:?}");
            let ids = made.encode(line, true).unwrap();
            assert_eq!((ids[0], made.decode(&ids).unwrap().as_str()), (1, line));
        }
    }
}
