//! `tokenizer.json` and what belongs to it, from the vocabulary in a GGUF file.

mod added;
mod byte_level;
mod pre_tokenizer;
mod sentence_piece;

use serde_json::{Map, Value, json};

use super::value::Metadata;
use crate::error::Result;

/// The key of the vocabulary.
pub(super) const TOKENS: &str = "tokenizer.ggml.tokens";
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

/// The vocabulary of a file.
struct Vocabulary<'a> {
    metadata: &'a Metadata,
    tokens: &'a [String],
    /// What kind each token is of.
    kinds: Vec<Kind>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    Normal,
    Unknown,
    Control,
    UserDefined,
    Unused,
    Byte,
}

impl<'a> Vocabulary<'a> {
    fn read(metadata: &'a Metadata) -> Result<Self> {
        const KINDS: &str = "tokenizer.ggml.token_type";
        let tokens = metadata.required(TOKENS, metadata.strings(TOKENS)?)?;
        let kinds = match metadata.numbers(KINDS)? {
            None => vec![Kind::Normal; tokens.len()],
            Some(kinds) if kinds.len() == tokens.len() => kinds.iter().map(|&kind| Kind::of(kind)).collect(),
            Some(kinds) => {
                let message = format!("has {} entries for {} tokens", kinds.len(), tokens.len());
                return Err(metadata.error(KINDS, message));
            }
        };
        Ok(Vocabulary { metadata, tokens, kinds })
    }

    /// The token that a key such as `tokenizer.ggml.bos_token_id` names.
    fn special(&self, name: &str) -> Result<Option<(usize, &'a str)>> {
        let key = format!("tokenizer.ggml.{name}_token_id");
        let Some(id) = self.metadata.usize(&key, 0..=u32::MAX as usize)? else { return Ok(None) };
        match self.tokens.get(id) {
            Some(token) => Ok(Some((id, token))),
            None => Err(self.metadata.error(&key, format!("is {id}, but there are {} tokens", self.tokens.len()))),
        }
    }

    fn flag(&self, name: &str, default: bool) -> Result<bool> {
        Ok(self.metadata.bool(&format!("tokenizer.ggml.{name}"))?.unwrap_or(default))
    }

    /// Puts the tokens that the file asks for around every text.
    fn post_processor(&self, adds_bos: bool) -> Result<Value> {
        let token = |name: &str| self.special(name);
        let begin = if self.flag("add_bos_token", adds_bos)? { token("bos")? } else { None };
        let end = if self.flag("add_eos_token", false)? { token("eos")? } else { None };
        if begin.is_none() && end.is_none() {
            return Ok(Value::Null);
        }
        let special = |token: Option<(usize, &str)>, kind: u8| {
            token.map(|(_, token)| json!({ "SpecialToken": { "id": token, "type_id": kind } }))
        };
        let around = |name: &str, kind: u8| {
            let text = json!({ "Sequence": { "id": name, "type_id": kind } });
            special(begin, kind).into_iter().chain([text]).chain(special(end, kind)).collect::<Vec<_>>()
        };
        let mut tokens = Map::new();
        for (id, token) in begin.into_iter().chain(end) {
            tokens.insert(token.to_owned(), json!({ "id": token, "ids": [id], "tokens": [token] }));
        }
        let pair: Vec<_> = around("A", 0).into_iter().chain(around("B", 1)).collect();
        Ok(json!({ "type": "TemplateProcessing", "single": around("A", 0), "pair": pair, "special_tokens": tokens }))
    }

    /// Ids of the tokens, each text once: the first id counts.
    fn ids(&self, spelled: impl Fn(&str) -> String) -> Map<String, Value> {
        let mut ids = Map::new();
        for (id, token) in self.tokens.iter().enumerate() {
            ids.entry(spelled(token)).or_insert(id.into());
        }
        ids
    }
}

impl Kind {
    fn of(number: f64) -> Self {
        match number as i64 {
            2 => Kind::Unknown,
            3 => Kind::Control,
            4 => Kind::UserDefined,
            5 => Kind::Unused,
            6 => Kind::Byte,
            _ => Kind::Normal,
        }
    }
}

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

/// The parts of a `tokenizer.json` that its kind decides.
struct Parts {
    normalizer: Value,
    pre_tokenizer: Value,
    decoder: Value,
    model: Value,
    /// Whether texts begin with the beginning-of-sequence token where the file does not say.
    adds_bos: bool,
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
