//! The tokens of a file, and what each is.

use serde_json::{Map, Value, json};

use crate::checkpoint::gguf::value::Metadata;
use crate::error::Result;

/// The key of the vocabulary.
pub(in crate::checkpoint::gguf) const TOKENS: &str = "tokenizer.ggml.tokens";

/// The vocabulary of a file.
pub(super) struct Vocabulary<'a> {
    pub metadata: &'a Metadata,
    pub tokens: &'a [String],
    /// What kind each token is of.
    pub kinds: Vec<Kind>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Kind {
    Normal,
    Unknown,
    Control,
    UserDefined,
    Unused,
    Byte,
}

impl<'a> Vocabulary<'a> {
    pub fn read(metadata: &'a Metadata) -> Result<Self> {
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
    pub fn special(&self, name: &str) -> Result<Option<(usize, &'a str)>> {
        let key = format!("tokenizer.ggml.{name}_token_id");
        let Some(id) = self.metadata.usize(&key, 0..=u32::MAX as usize)? else { return Ok(None) };
        match self.tokens.get(id) {
            Some(token) => Ok(Some((id, token))),
            None => Err(self.metadata.error(&key, format!("is {id}, but there are {} tokens", self.tokens.len()))),
        }
    }

    pub fn flag(&self, name: &str, default: bool) -> Result<bool> {
        Ok(self.metadata.bool(&format!("tokenizer.ggml.{name}"))?.unwrap_or(default))
    }

    /// Puts the tokens that the file asks for around every text.
    pub fn post_processor(&self, adds_bos: bool) -> Result<Value> {
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
    pub fn ids(&self, spelled: impl Fn(&str) -> String) -> Map<String, Value> {
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

/// The parts of a `tokenizer.json` that its kind decides.
pub(super) struct Parts {
    pub normalizer: Value,
    pub pre_tokenizer: Value,
    pub decoder: Value,
    pub model: Value,
    /// Whether texts begin with the beginning-of-sequence token where the file does not say.
    pub adds_bos: bool,
}
