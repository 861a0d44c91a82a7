//! Vocabularies of byte pairs, as GPT-2's (`gpt2`): tokens are spelled in letters that stand for bytes.

use serde_json::{Value, json};

use super::pre_tokenizer::PreTokenizer;
use super::vocabulary::{Parts, Vocabulary};
use crate::error::Result;

const MERGES: &str = "tokenizer.ggml.merges";

/// What makes a tokenizer of it.
///
/// # Errors
/// If merges are missing or malformed, or how text is split into words is not known.
pub(super) fn parts(vocabulary: &Vocabulary) -> Result<Parts> {
    let metadata = vocabulary.metadata;
    let pre_tokenizer = PreTokenizer::of(metadata)?;
    let merges = metadata.required(MERGES, metadata.strings(MERGES)?)?;
    let ids = vocabulary.ids(str::to_owned);
    let mut pairs = Vec::with_capacity(merges.len());
    for merge in merges {
        // The first letter may be the blank's own.
        let split = merge.char_indices().skip(1).find(|(_, letter)| *letter == ' ').map(|(at, _)| at);
        let Some((left, right)) = split.map(|at| (&merge[..at], &merge[at + 1..])) else {
            return Err(metadata.error(MERGES, format!("has {merge:?}, which is no pair")));
        };
        // The library refuses merges of what is not in the vocabulary.
        if ids.contains_key(left) && ids.contains_key(right) && ids.contains_key(&format!("{left}{right}")) {
            pairs.push(json!([left, right]));
        }
    }
    Ok(Parts {
        normalizer: if pre_tokenizer.composes { json!({ "type": "NFC" }) } else { Value::Null },
        pre_tokenizer: pre_tokenizer.json(),
        decoder: json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true }),
        model: json!({
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null, "end_of_word_suffix": null,
            "fuse_unk": false, "byte_fallback": false, "ignore_merges": pre_tokenizer.whole_words, "vocab": ids, "merges": pairs,
        }),
        adds_bos: pre_tokenizer.adds_bos,
    })
}
