//! The keys that begin with the name of an architecture.

use super::value::Metadata;
use crate::error::Result;

/// Largest size of anything, as in `config.json`.
pub(super) const MAX_SIZE: usize = 1 << 24;

/// Metadata of the architecture, whose keys begin with its name.
pub(super) struct Keys<'a> {
    pub metadata: &'a Metadata,
    prefix: &'static str,
}

impl<'a> Keys<'a> {
    pub fn new(metadata: &'a Metadata, prefix: &'static str) -> Self {
        Keys { metadata, prefix }
    }

    pub fn name(&self, key: &str) -> String {
        format!("{}.{key}", self.prefix)
    }

    pub fn usize(&self, key: &str) -> Result<Option<usize>> {
        self.metadata.usize(&self.name(key), 1..=MAX_SIZE)
    }

    pub fn positive(&self, key: &str) -> Result<Option<f64>> {
        self.metadata.positive(&self.name(key))
    }

    pub fn str(&self, key: &str) -> Result<Option<&str>> {
        self.metadata.str(&self.name(key))
    }

    pub fn required(&self, key: &str) -> Result<usize> {
        self.metadata.required(&self.name(key), self.uniform(key)?)
    }

    /// A size that some files have a list of, one for each layer.
    pub fn uniform(&self, key: &str) -> Result<Option<usize>> {
        let name = self.name(key);
        let Ok(Some(list)) = self.metadata.numbers(&name) else { return self.usize(key) };
        let first = list.first().copied().unwrap_or_default();
        let size = (1.0..=MAX_SIZE as f64).contains(&first) && first.fract() == 0.0;
        match size && list.iter().all(|&n| n == first) {
            true => Ok(Some(first as usize)),
            false => Err(self.metadata.error(&name, "differs between layers, which is not supported")),
        }
    }
}
