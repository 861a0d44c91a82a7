//! Tokens that a model's files declare beside `tokenizer.json`, counted as transformers 5 counts them.
//!
//! `added_tokens_decoder` of `tokenizer_config.json` says it all where it is there. Where it is not, the older files
//! `special_tokens_map.json` and `added_tokens.json` count too. Ids follow from the order alone; those that the files name are not read
//! otherwise. Whether a text begins with a beginning-of-sequence token is up to `tokenizer.json`, whatever `add_bos_token` says.

use std::path::PathBuf;

use serde_json::{Map, Value};
use tokenizers::AddedToken;

use crate::checkpoint::ModelFiles;
use crate::error::{Error, Result};

/// The names that every tokenizer has, in the order in which their tokens are added.
const NAMES: [&str; 7] = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];
const LISTED: &str = "added_tokens_decoder";
const EXTRA: &str = "extra_special_tokens";
/// What [`EXTRA`] was called before.
const ADDITIONAL: &str = "additional_special_tokens";

/// What was declared.
pub struct Declared {
    /// In the order of their ids.
    listed: Vec<AddedToken>,
    /// In the order in which they are added.
    named: Vec<(String, AddedToken)>,
    extra: Vec<AddedToken>,
}

impl Declared {
    /// # Errors
    /// If a file cannot be read, or is malformed; the message names the field.
    pub fn read(files: &ModelFiles) -> Result<Self> {
        let read = |name| Declarations::read(files, name);
        let config = read("tokenizer_config.json")?;
        if config.fields.contains_key(LISTED) {
            return Ok(Declared { listed: config.listed()?, named: config.named()?, extra: config.extra()? });
        }
        let map = read("special_tokens_map.json")?;
        let mut named = config.named()?;
        for (name, token) in map.named()? {
            let token = AddedToken { special: true, ..token };
            match named.iter_mut().find(|(known, _)| *known == name) {
                Some((_, known)) => *known = token,
                None => named.push((name, token)),
            }
        }
        in_order(&mut named);
        let mut extra = config.extra()?;
        if extra.is_empty() || map.fields.contains_key(EXTRA) {
            extra.extend(map.extra()?);
        }
        let is_special =
            |content: &str| named.iter().map(|(_, token)| token).chain(&extra).any(|t| t.content == content);
        let listed = read("added_tokens.json")?.ids()?;
        let listed = listed.into_iter().map(|content| {
            let special = is_special(&content);
            AddedToken::from(content, special)
        });
        Ok(Declared { listed: listed.collect(), named, extra })
    }

    /// The token with this name.
    pub fn named(&self, name: &str) -> Option<&str> {
        self.named.iter().find(|(known, _)| known == name).map(|(_, token)| token.content.as_str())
    }

    /// What `tokenizer` does not have yet, in the order in which to add it.
    pub fn tokens_beside(&self, tokenizer: &tokenizers::Tokenizer) -> Vec<AddedToken> {
        let known = tokenizer.get_added_tokens_decoder();
        let mut beside: Vec<AddedToken> =
            self.listed.iter().filter(|token| !known.values().any(|k| k == *token)).cloned().collect();
        for token in self.named.iter().map(|(_, token)| token).chain(&self.extra) {
            if !known.values().chain(&beside).any(|known| known.content == token.content) {
                beside.push(token.clone());
            }
        }
        for token in &mut beside {
            token.special |= self.named.iter().any(|(_, named)| named.content == token.content);
        }
        beside
    }
}

/// The usual names first.
fn in_order(named: &mut [(String, AddedToken)]) {
    named.sort_by_key(|(name, _)| NAMES.iter().position(|known| known == name).unwrap_or(NAMES.len()));
}

/// One of the files; empty where there is none.
struct Declarations {
    path: PathBuf,
    fields: Map<String, Value>,
}

impl Declarations {
    fn read(files: &ModelFiles, name: &str) -> Result<Self> {
        let path = files.path_of(name);
        match files.json(name)? {
            None => Ok(Declarations { path, fields: Map::new() }),
            Some(Value::Object(fields)) => Ok(Declarations { path, fields }),
            Some(_) => Err(Error::config(&path, "must be a JSON object")),
        }
    }

    /// The tokens of `added_tokens_decoder`.
    fn listed(&self) -> Result<Vec<AddedToken>> {
        let wrong = || self.wrong(LISTED, "an object of tokens by their ids");
        let mut listed = Vec::new();
        for (id, value) in self.fields[LISTED].as_object().ok_or_else(wrong)? {
            listed.push((id.parse::<u32>().map_err(|_| wrong())?, token(value).ok_or_else(wrong)?));
        }
        listed.sort_by_key(|(id, _)| *id);
        Ok(listed.into_iter().map(|(_, token)| token).collect())
    }

    /// The tokens of `added_tokens.json`.
    fn ids(&self) -> Result<Vec<String>> {
        let mut ids = Vec::new();
        for (content, id) in &self.fields {
            ids.push((id.as_u64().ok_or_else(|| self.wrong(content, "a token id"))?, content.clone()));
        }
        ids.sort();
        Ok(ids.into_iter().map(|(_, content)| content).collect())
    }

    /// Fields whose names end in `_token`, and those of an object of extra tokens.
    fn named(&self) -> Result<Vec<(String, AddedToken)>> {
        let mut named = Vec::new();
        for (name, value) in &self.fields {
            match token(value) {
                Some(token) if name.ends_with("_token") => named.push((name.clone(), token)),
                None if NAMES.contains(&name.as_str()) && !value.is_null() => return Err(self.wrong(name, "a token")),
                _ => {}
            }
        }
        in_order(&mut named);
        if let Some(Value::Object(extra)) = self.fields.get(EXTRA) {
            for (name, value) in extra {
                named.push((name.clone(), token(value).ok_or_else(|| self.wrong(EXTRA, "an object of tokens"))?));
            }
        }
        Ok(named)
    }

    /// The tokens of the list of extra ones.
    fn extra(&self) -> Result<Vec<AddedToken>> {
        let filled = |name: &&str| {
            self.fields.get(*name).is_some_and(|value| !value.is_null() && *value != Value::Array(Vec::new()))
        };
        let Some(name) = [EXTRA, ADDITIONAL].into_iter().find(filled) else { return Ok(Vec::new()) };
        match &self.fields[name] {
            Value::Object(_) if name == EXTRA => Ok(Vec::new()),
            Value::Array(list) => {
                list.iter().map(|value| token(value).ok_or_else(|| self.wrong(name, "a list of tokens"))).collect()
            }
            _ => Err(self.wrong(name, "a list of tokens")),
        }
    }

    fn wrong(&self, field: &str, expected: &str) -> Error {
        let found: String = self.fields[field].to_string().chars().take(60).collect();
        Error::config(&self.path, format!("field {field} must be {expected}, found {found}"))
    }
}

/// A token spelled as a string, which is a special one, or as an object.
fn token(value: &Value) -> Option<AddedToken> {
    let Value::Object(fields) = value else { return Some(AddedToken::from(value.as_str()?, true)) };
    let flag = |name: &str| fields.get(name).and_then(Value::as_bool);
    let special = flag("special").unwrap_or(false);
    Some(AddedToken {
        content: fields.get("content")?.as_str()?.to_owned(),
        single_word: flag("single_word").unwrap_or(false),
        lstrip: flag("lstrip").unwrap_or(false),
        rstrip: flag("rstrip").unwrap_or(false),
        normalized: flag("normalized").unwrap_or(!special),
        special,
    })
}
