//! The metadata of a GGUF file: values by key, read as what they should be.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// One value.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Of any width.
    Integer(i128),
    /// Of either width.
    Float(f64),
    /// True or false.
    Bool(bool),
    /// Text.
    String(String),
    /// Several of one kind.
    List(List),
}

/// Several values of one kind.
#[derive(Debug, Clone, PartialEq)]
pub enum List {
    /// Integers or floats.
    Numbers(Vec<Value>),
    /// True or false.
    Bools(Vec<bool>),
    /// Texts.
    Strings(Vec<String>),
}

/// The values of a file, by key.
#[derive(Debug, Clone, Default)]
pub struct Metadata {
    pub(super) path: PathBuf,
    pub(super) values: BTreeMap<String, Value>,
}

impl Metadata {
    /// The file, for messages.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Every key with its value.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.values.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// Whether there is such a key.
    pub fn has(&self, key: &str) -> bool {
        self.values.contains_key(key)
    }

    /// An integer in that range.
    pub fn usize(&self, key: &str, range: RangeInclusive<usize>) -> Result<Option<usize>> {
        let Some(value) = self.values.get(key) else { return Ok(None) };
        match value {
            Value::Integer(n) if usize::try_from(*n).is_ok_and(|n| range.contains(&n)) => Ok(Some(*n as usize)),
            _ => Err(self.wrong(key, &format!("an integer in {}..={}", range.start(), range.end()), value)),
        }
    }

    /// A finite number above 0.
    pub fn positive(&self, key: &str) -> Result<Option<f64>> {
        let Some(value) = self.values.get(key) else { return Ok(None) };
        let number = match value {
            Value::Float(x) => *x,
            Value::Integer(n) => *n as f64,
            _ => f64::NAN,
        };
        match number.is_finite() && number > 0.0 {
            true => Ok(Some(shortest(number))),
            false => Err(self.wrong(key, "a finite number above 0", value)),
        }
    }

    /// True or false.
    pub fn bool(&self, key: &str) -> Result<Option<bool>> {
        match self.values.get(key) {
            None => Ok(None),
            Some(Value::Bool(b)) => Ok(Some(*b)),
            Some(other) => Err(self.wrong(key, "true or false", other)),
        }
    }

    /// Text.
    pub fn str(&self, key: &str) -> Result<Option<&str>> {
        match self.values.get(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.wrong(key, "a string", other)),
        }
    }

    /// Texts.
    pub fn strings(&self, key: &str) -> Result<Option<&[String]>> {
        match self.values.get(key) {
            None => Ok(None),
            Some(Value::List(List::Strings(list))) => Ok(Some(list)),
            Some(other) => Err(self.wrong(key, "a list of strings", other)),
        }
    }

    /// Numbers.
    pub fn numbers(&self, key: &str) -> Result<Option<Vec<f64>>> {
        let number = |value: &Value| match value {
            Value::Integer(n) => *n as f64,
            Value::Float(x) => *x,
            _ => f64::NAN,
        };
        match self.values.get(key) {
            None => Ok(None),
            Some(Value::List(List::Numbers(list))) => Ok(Some(list.iter().map(number).collect())),
            Some(other) => Err(self.wrong(key, "a list of numbers", other)),
        }
    }

    /// The value, which must be there.
    ///
    /// # Errors
    /// If it is not.
    pub fn required<T>(&self, key: &str, value: Option<T>) -> Result<T> {
        value.ok_or_else(|| self.error(key, "is missing"))
    }

    /// The error that says so of a key.
    pub fn error(&self, key: &str, message: impl std::fmt::Display) -> Error {
        Error::gguf(&self.path, format!("{key} {message}"))
    }

    fn wrong(&self, key: &str, expected: &str, found: &Value) -> Error {
        self.error(key, format!("must be {expected}, found {found}"))
    }
}

/// The shortest decimal number that means this one to an f32, where it was one: 1e-5, not 9.999999747378752e-6.
fn shortest(number: f64) -> f64 {
    let narrow = number as f32;
    match f64::from(narrow) == number {
        true => narrow.to_string().parse().unwrap_or(number),
        false => number,
    }
}

impl std::fmt::Display for Value {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        const SHOWN: usize = 60;
        match self {
            Value::Integer(n) => write!(f, "{n}"),
            Value::Float(x) => write!(f, "{}", shortest(*x)),
            Value::Bool(b) => write!(f, "{b}"),
            Value::String(text) if text.chars().count() <= SHOWN => write!(f, "{text:?}"),
            Value::String(text) => write!(f, "{:?}…", text.chars().take(SHOWN).collect::<String>()),
            Value::List(List::Numbers(list)) => write!(f, "{} numbers", list.len()),
            Value::List(List::Bools(list)) => write!(f, "{} of true or false", list.len()),
            Value::List(List::Strings(list)) => write!(f, "{} strings", list.len()),
        }
    }
}
