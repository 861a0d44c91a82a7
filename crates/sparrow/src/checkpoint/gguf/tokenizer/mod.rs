//! `tokenizer.json` and what belongs to it, from the vocabulary in a GGUF file.

mod added;
mod byte_level;
mod pre_tokenizer;
mod sentence_piece;
mod vocabulary;

use serde_json::{Value, json};

use super::value::Metadata;
use crate::error::Result;
pub(super) use vocabulary::TOKENS;
use vocabulary::{Kind, Vocabulary};

/// The key of the kind of tokenizer.
const MODEL: &str = "tokenizer.ggml.model";

/// Tokens that are no ordinary text and end an answer in the models that have them: files often name only one of theirs.
const ENDS: [&str; 10] = [
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<|eom_id|>",
    "<EOT>",
    "<end_of_utterance>",
];

/// `tokenizer.json`.
///
/// # Errors
/// If the kind of tokenizer, or how it splits text into words, is not known, or the vocabulary contradicts itself.
pub(super) fn tokenizer(metadata: &Metadata) -> Result<Value> {
    let vocabulary = Vocabulary::read(metadata)?;
    let parts = match metadata.required(MODEL, metadata.str(MODEL)?)? {
        "gpt2" => byte_level::parts(&vocabulary)?,
        "llama" => sentence_piece::parts(&vocabulary)?,
        other => {
            let message = format!("is {other:?}, which is not supported; supported: llama, gpt2");
            return Err(metadata.error(MODEL, message));
        }
    };
    Ok(json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": added::tokens(&vocabulary)?,
        "normalizer": parts.normalizer,
        "pre_tokenizer": parts.pre_tokenizer,
        "post_processor": vocabulary.post_processor(parts.adds_bos)?,
        "decoder": parts.decoder,
        "model": parts.model,
    }))
}

/// `tokenizer_config.json`.
///
/// # Errors
/// If ids are outside the vocabulary, or a value is of another kind than it should be.
pub(super) fn config(metadata: &Metadata) -> Result<Value> {
    const TEMPLATE: &str = "tokenizer.chat_template";
    let vocabulary = Vocabulary::read(metadata)?;
    let mut config = json!({ "tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": false });
    let fields = config.as_object_mut().expect("it is made as one");
    for (field, name) in
        [("bos_token", "bos"), ("eos_token", "eos"), ("unk_token", "unknown"), ("pad_token", "padding")]
    {
        if let Some((_, token)) = vocabulary.special(name)? {
            fields.insert(field.into(), token.into());
        }
    }
    if let Some(template) = metadata.str(TEMPLATE)? {
        // Further ones are under keys that name them.
        let named = metadata.strings("tokenizer.chat_templates")?.unwrap_or_default().iter().filter_map(|name| {
            let template = metadata.str(&format!("{TEMPLATE}.{name}")).ok()??;
            Some(json!({ "name": name, "template": template }))
        });
        let named: Vec<_> = named.collect();
        let template = match named.is_empty() {
            true => Value::from(template),
            false => [json!({ "name": "default", "template": template })].into_iter().chain(named).collect(),
        };
        fields.insert("chat_template".into(), template);
    }
    Ok(config)
}

/// `generation_config.json`: every id that ends a text.
///
/// # Errors
/// As [`config`].
pub(super) fn generation_config(metadata: &Metadata) -> Result<Value> {
    if !metadata.has(TOKENS) {
        return Ok(json!({}));
    }
    let vocabulary = Vocabulary::read(metadata)?;
    let mut ends = Vec::new();
    for name in ["eos", "eot", "eom"] {
        ends.extend(vocabulary.special(name)?.map(|(id, _)| id));
    }
    let is_end = |(token, kind): (&String, &Kind)| {
        matches!(kind, Kind::Control | Kind::UserDefined) && ENDS.contains(&token.as_str())
    };
    let known = vocabulary.tokens.iter().zip(&vocabulary.kinds).enumerate().filter(|(_, token)| is_end(*token));
    for (id, _) in known {
        if !ends.contains(&id) {
            ends.push(id);
        }
    }
    let mut config = json!({ "eos_token_id": ends });
    for (field, name) in [("bos_token_id", "bos"), ("pad_token_id", "padding")] {
        if let Some((id, _)) = vocabulary.special(name)? {
            config[field] = id.into();
        }
    }
    Ok(config)
}
