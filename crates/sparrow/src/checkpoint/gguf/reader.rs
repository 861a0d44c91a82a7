//! The parts of a GGUF header, one after another. Nothing that the file says of lengths is believed before the bytes are there.

use std::path::Path;

use super::value::{List, Value};
use crate::error::{Error, Result};

/// Reads forward through the bytes of a file.
pub(super) struct Reader<'a> {
    path: &'a Path,
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    pub fn new(path: &'a Path, bytes: &'a [u8]) -> Self {
        Reader { path, bytes, at: 0 }
    }

    /// Bytes read so far.
    pub fn position(&self) -> usize {
        self.at
    }

    /// The error that says so of this file.
    pub fn error(&self, message: impl std::fmt::Display) -> Error {
        Error::gguf(self.path, message.to_string())
    }

    /// `len` bytes, for what messages call `what`.
    fn take(&mut self, len: u64, what: &str) -> Result<&'a [u8]> {
        let left = self.bytes.len() - self.at;
        match usize::try_from(len).ok().filter(|&len| len <= left) {
            Some(len) => {
                self.at += len;
                Ok(&self.bytes[self.at - len..self.at])
            }
            None => Err(self.error(format!(
                "{what} at byte {} takes {len} bytes, but only {left} are left: the file is cut off or damaged",
                self.at
            ))),
        }
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N]> {
        Ok(*self.take(N as u64, what)?.first_chunk().expect("as many were taken"))
    }

    pub fn u32(&mut self, what: &str) -> Result<u32> {
        self.array(what).map(u32::from_le_bytes)
    }

    pub fn u64(&mut self, what: &str) -> Result<u64> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// A count of things that take at least `least` bytes each, so that room for them can be made.
    pub fn count(&mut self, least: u64, what: &str) -> Result<usize> {
        let count = self.u64(what)?;
        let left = (self.bytes.len() - self.at) as u64;
        if count > left / least {
            return Err(self.error(format!(
                "{what}: says {count}, more than the {left} bytes that are left can hold: the file is cut off or damaged"
            )));
        }
        Ok(count as usize)
    }

    pub fn string(&mut self, what: &str) -> Result<String> {
        let len = self.u64(what)?;
        let bytes = self.take(len, what)?;
        String::from_utf8(bytes.to_vec()).map_err(|_| self.error(format!("{what} is not UTF-8")))
    }

    /// A value of the metadata `key`.
    pub fn value(&mut self, key: &str) -> Result<Value> {
        let kind = self.u32(key)?;
        Ok(match kind {
            ARRAY => Value::List(self.list(key)?),
            STRING => Value::String(self.string(key)?),
            BOOL => Value::Bool(self.bool(key)?),
            _ => self.number(kind, key)?,
        })
    }

    fn list(&mut self, key: &str) -> Result<List> {
        let kind = self.u32(key)?;
        Ok(match kind {
            STRING => {
                let count = self.count(8, key)?;
                List::Strings((0..count).map(|_| self.string(key)).collect::<Result<_>>()?)
            }
            BOOL => {
                let count = self.count(1, key)?;
                List::Bools((0..count).map(|_| self.bool(key)).collect::<Result<_>>()?)
            }
            ARRAY => return Err(self.error(format!("{key} is an array of arrays, which no model needs"))),
            _ => {
                let Some(size) = size_of(kind) else { return Err(self.unknown(kind, key)) };
                let count = self.count(size, key)?;
                List::Numbers((0..count).map(|_| self.number(kind, key)).collect::<Result<_>>()?)
            }
        })
    }

    fn bool(&mut self, key: &str) -> Result<bool> {
        match self.array(key)? {
            [0] => Ok(false),
            [1] => Ok(true),
            [other] => Err(self.error(format!("{key} must be 0 or 1, found {other}"))),
        }
    }

    fn number(&mut self, kind: u32, key: &str) -> Result<Value> {
        Ok(match kind {
            0 => Value::Integer(self.array::<1>(key)?[0].into()),
            1 => Value::Integer((self.array::<1>(key)?[0] as i8).into()),
            2 => Value::Integer(u16::from_le_bytes(self.array(key)?).into()),
            3 => Value::Integer(i16::from_le_bytes(self.array(key)?).into()),
            4 => Value::Integer(u32::from_le_bytes(self.array(key)?).into()),
            5 => Value::Integer(i32::from_le_bytes(self.array(key)?).into()),
            6 => Value::Float(f32::from_le_bytes(self.array(key)?).into()),
            10 => Value::Integer(u64::from_le_bytes(self.array(key)?).into()),
            11 => Value::Integer(i64::from_le_bytes(self.array(key)?).into()),
            12 => Value::Float(f64::from_le_bytes(self.array(key)?)),
            other => return Err(self.unknown(other, key)),
        })
    }

    fn unknown(&self, kind: u32, key: &str) -> Error {
        self.error(format!("{key} has a value of the unknown type {kind}"))
    }
}

const BOOL: u32 = 7;
const STRING: u32 = 8;
const ARRAY: u32 = 9;

/// Bytes of a number.
fn size_of(kind: u32) -> Option<u64> {
    match kind {
        0 | 1 => Some(1),
        2 | 3 => Some(2),
        4..=6 => Some(4),
        10..=12 => Some(8),
        _ => None,
    }
}
