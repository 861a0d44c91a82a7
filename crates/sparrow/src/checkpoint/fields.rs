//! Typed reads from a JSON object, with errors that name file, field, expected and found.

use std::path::Path;

use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::tensor::damage;
use crate::tensor::read::whole;

/// One JSON object of a configuration file.
pub(crate) struct Fields<'a> {
    path: &'a Path,
    /// Where it is inside the file's object, a dot after each name.
    prefix: String,
    map: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    pub(crate) fn new(path: &'a Path, value: &'a Value) -> Result<Self> {
        match value {
            Value::Object(map) => Ok(Fields { path, prefix: String::new(), map }),
            other => Err(Error::config(path, format!("expected a JSON object, found {}", kind(other)))),
        }
    }

    /// The object under `name`, if it is there and not null.
    pub(crate) fn object(&self, name: &str) -> Result<Option<Fields<'a>>> {
        match self.present(name) {
            None => Ok(None),
            Some(Value::Object(map)) => {
                Ok(Some(Fields { path: self.path, prefix: format!("{}{name}.", self.prefix), map }))
            }
            Some(other) => Err(self.wrong(name, "an object", other)),
        }
    }

    /// The objects under all names.
    pub(crate) fn objects(&self) -> Result<Vec<Fields<'a>>> {
        self.map.keys().filter_map(|name| self.object(name).transpose()).collect()
    }

    pub(crate) fn usize(&self, name: &str, range: std::ops::RangeInclusive<usize>) -> Result<Option<usize>> {
        let Some(value) = self.present(name) else { return Ok(None) };
        let expected = || format!("an integer in {}..={}", range.start(), range.end());
        match value.as_u64().and_then(|v| usize::try_from(v).ok()) {
            Some(v) if range.contains(&v) => Ok(Some(v)),
            _ => Err(self.wrong(name, &expected(), value)),
        }
    }

    /// Whether there is no field.
    pub(crate) fn is_empty(&self) -> bool {
        self.map.is_empty()
    }

    /// Whether the field is there, be it null.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.map.contains_key(name)
    }

    /// A number.
    pub(crate) fn number(&self, name: &str) -> Result<Option<f64>> {
        let Some(value) = self.present(name) else { return Ok(None) };
        value.as_f64().map(Some).ok_or_else(|| self.wrong(name, "a number", value))
    }

    /// A finite number greater than zero.
    pub(crate) fn positive(&self, name: &str) -> Result<Option<f64>> {
        let Some(value) = self.present(name) else { return Ok(None) };
        positive(value).map(Some).ok_or_else(|| self.wrong(name, "a finite number above 0", value))
    }

    /// A list of finite numbers greater than zero.
    pub(crate) fn positives(&self, name: &str) -> Result<Option<Vec<f64>>> {
        let Some(value) = self.present(name) else { return Ok(None) };
        let list = value.as_array().and_then(|list| list.iter().map(positive).collect());
        list.map(Some).ok_or_else(|| self.wrong(name, "a list of finite numbers above 0", value))
    }

    /// A list of strings.
    pub(crate) fn strings(&self, name: &str) -> Result<Option<Vec<&'a str>>> {
        let Some(value) = self.present(name) else { return Ok(None) };
        let list = value.as_array().and_then(|list| list.iter().map(Value::as_str).collect());
        list.map(Some).ok_or_else(|| self.wrong(name, "a list of strings", value))
    }

    pub(crate) fn bool(&self, name: &str) -> Result<Option<bool>> {
        let Some(value) = self.present(name) else { return Ok(None) };
        value.as_bool().map(Some).ok_or_else(|| self.wrong(name, "true or false", value))
    }

    pub(crate) fn str(&self, name: &str) -> Result<Option<&'a str>> {
        let Some(value) = self.present(name) else { return Ok(None) };
        value.as_str().map(Some).ok_or_else(|| self.wrong(name, "a string", value))
    }

    /// An id, or a list of ids.
    pub(crate) fn ids(&self, name: &str) -> Result<Vec<u32>> {
        let one = |v: &Value| v.as_u64().and_then(|v| u32::try_from(v).ok());
        let ids = match self.present(name) {
            None => Some(Vec::new()),
            Some(Value::Array(list)) => list.iter().map(one).collect(),
            Some(value) => one(value).map(|id| vec![id]),
        };
        ids.ok_or_else(|| self.wrong(name, "a token id or a list of token ids", &self.map[name]))
    }

    pub(crate) fn required<T>(&self, name: &str, value: Option<T>) -> Result<T> {
        value.ok_or_else(|| self.error(name, "is missing"))
    }

    pub(crate) fn error(&self, name: &str, message: &str) -> Error {
        Error::config(self.path, format!("field {}{name} {message}", self.prefix))
    }

    fn present(&self, name: &str) -> Option<&'a Value> {
        self.map.get(name).filter(|v| !v.is_null())
    }

    fn wrong(&self, name: &str, expected: &str, found: &Value) -> Error {
        let mut found = found.to_string();
        if found.chars().count() > 60 {
            found = found.chars().take(60).chain("…".chars()).collect();
        }
        self.error(name, &format!("must be {expected}, found {found}"))
    }
}

/// A value that overflows or vanishes in f32 would turn into infinity or zero in the forward pass.
fn positive(value: &Value) -> Option<f64> {
    value.as_f64().filter(|&v| v.is_finite() && v > 0.0 && (v as f32).is_finite() && v as f32 > 0.0)
}

/// Reads a JSON file of at most 64 MiB, as Python writes it: `NaN` and `Infinity` become strings, which no field accepts as a
/// number.
pub fn read_json(path: &Path) -> Result<Value> {
    let content = whole(path, 64 << 20)?;
    let text = content.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&content);
    serde_json::from_slice(text).or_else(|error| {
        serde_json::from_slice(&quote_words(text)).map_err(|_| {
            let begins = damage::beginning(text).map_or(String::new(), |text| format!("; it begins with {text}"));
            Error::config(path, format!("is not valid JSON: {error}{begins}"))
        })
    })
}

/// The text with the words in quotes that Python's `json` writes for numbers that JSON does not have.
fn quote_words(text: &[u8]) -> Vec<u8> {
    const WORDS: [&[u8]; 3] = [b"NaN", b"Infinity", b"-Infinity"];
    let mut quoted = Vec::with_capacity(text.len() + 64);
    let (mut at, mut in_string) = (0, false);
    while let Some(&byte) = text.get(at) {
        let word = WORDS.iter().find(|word| !in_string && text[at..].starts_with(word));
        let taken = match byte {
            b'\\' if in_string => 2,
            _ => word.map_or(1, |word| word.len()),
        };
        in_string ^= byte == b'"';
        let part = &text[at..text.len().min(at + taken)];
        let quote: &[u8] = if word.is_some() { b"\"" } else { b"" };
        [quote, part, quote].into_iter().for_each(|part| quoted.extend_from_slice(part));
        at += taken;
    }
    quoted
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted_outside_strings_only() {
        let quoted = |text: &str| String::from_utf8(quote_words(text.as_bytes())).unwrap();
        assert_eq!(
            quoted(r#"{"a": [0.0, Infinity, -Infinity], "b":NaN}"#),
            r#"{"a": [0.0, "Infinity", "-Infinity"], "b":"NaN"}"#
        );
        for same in [r#"{"NaN": "Infinity \" NaN"}"#, r#"{"a": "\\", "b": -1}"#, "\"\\", ""] {
            assert_eq!(quoted(same), same);
        }
    }
}
