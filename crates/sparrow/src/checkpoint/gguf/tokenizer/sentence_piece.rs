//! Vocabularies of SentencePiece (`llama`): pieces with scores, blanks as ▁, bytes where there is no piece.

use std::cmp::Reverse;
use std::collections::HashMap;

use serde_json::{Value, json};

use super::vocabulary::{Kind, Parts, Vocabulary};
use crate::error::Result;

const SCORES: &str = "tokenizer.ggml.scores";
/// What stands for a blank.
const BLANK: &str = "\u{2581}";

/// What makes a tokenizer of it.
///
/// # Errors
/// If there are not as many scores as tokens, or one is not a number.
pub(super) fn parts(vocabulary: &Vocabulary) -> Result<Parts> {
    let metadata = vocabulary.metadata;
    // Gemma's files spell runs of blanks as they are.
    let gemma = metadata.str("general.architecture")?.is_some_and(|name| name.starts_with("gemma"));
    let spelled = |token: &str| match gemma && !token.is_empty() && token.bytes().all(|b| b == b' ') {
        true => BLANK.repeat(token.len()),
        false => token.to_owned(),
    };
    let tokens: Vec<String> = vocabulary.tokens.iter().map(|token| spelled(token)).collect();
    let scores = match metadata.numbers(SCORES)? {
        // Gemma's do not follow the order of its merges; the order of its tokens does.
        _ if gemma => (0..tokens.len()).map(|id| -(id as f64)).collect(),
        Some(scores) if scores.len() == tokens.len() && scores.iter().all(|score| !score.is_nan()) => scores,
        Some(scores) => {
            let message = format!("must be {} numbers, one for each token, found {}", tokens.len(), scores.len());
            return Err(metadata.error(SCORES, message));
        }
        None => return Err(metadata.error(SCORES, "is missing")),
    };
    let prefix = vocabulary.flag("add_space_prefix", true)?;
    let replace = json!({ "type": "Replace", "pattern": { "String": " " }, "content": BLANK });
    let normalizer = match prefix {
        true => json!({ "type": "Sequence", "normalizers": [{ "type": "Prepend", "prepend": BLANK }, replace] }),
        false => replace,
    };
    let mut decoders = vec![
        json!({ "type": "Replace", "pattern": { "String": BLANK }, "content": " " }),
        json!({ "type": "ByteFallback" }),
        json!({ "type": "Fuse" }),
    ];
    if prefix {
        decoders.push(json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 }));
    }
    let unknown = vocabulary.special("unknown")?.map(|(_, token)| token);
    let unknown = unknown.or_else(|| {
        let at = vocabulary.kinds.iter().position(|kind| *kind == Kind::Unknown)?;
        Some(&vocabulary.tokens[at])
    });
    Ok(Parts {
        normalizer,
        pre_tokenizer: Value::Null,
        decoder: json!({ "type": "Sequence", "decoders": decoders }),
        model: json!({
            "type": "BPE", "dropout": null, "unk_token": unknown, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": true, "byte_fallback": true, "ignore_merges": false,
            "vocab": vocabulary.ids(spelled), "merges": merges(&tokens, &scores),
        }),
        adds_bos: true,
    })
}

/// The pairs of tokens that make up another, the best first: SentencePiece merges the pair with the highest score, so their order
/// is that of the scores.
fn merges(tokens: &[String], scores: &[f64]) -> Vec<Value> {
    let ids: HashMap<&str, usize> = tokens.iter().enumerate().rev().map(|(id, token)| (token.as_str(), id)).collect();
    let mut pairs = Vec::new();
    for (id, token) in tokens.iter().enumerate().filter(|(id, token)| ids[token.as_str()] == *id) {
        for (at, _) in token.char_indices().skip(1) {
            let (left, right) = token.split_at(at);
            if let (Some(&l), Some(&r)) = (ids.get(left), ids.get(right)) {
                pairs.push((id, l, r, left, right));
            }
        }
    }
    // Of pairs with the same score those with longer parts come first, as in the conversions of transformers.
    let length = |text: &str| text.chars().count();
    pairs.sort_by_cached_key(|&(id, l, r, left, right)| {
        // Turns the order of floats into one of integers, the highest first.
        let bits = scores[id].to_bits() as i64;
        let ascending = bits ^ ((bits >> 63) as u64 >> 1) as i64;
        (Reverse((ascending, length(left), length(right))), id, l, r)
    });
    pairs.into_iter().map(|(.., left, right)| json!([left, right])).collect()
}
