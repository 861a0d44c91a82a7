//! The files of a model by name, wherever they are.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::fields::read_json;
use super::safetensors::Checkpoint;
use crate::error::{Error, Result};

/// What the files of a model say: those of a Hugging Face directory.
#[derive(Debug, Clone)]
pub struct ModelFiles {
    path: PathBuf,
}

impl ModelFiles {
    /// The files in the directory `path`; which there are is not checked yet.
    ///
    /// # Errors
    /// Never, for a directory.
    pub fn open(path: &Path) -> Result<Self> {
        Ok(ModelFiles { path: path.to_owned() })
    }

    /// Where they are.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What messages call the file `name`.
    pub fn path_of(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Whether there is a file `name`, be it one that cannot be read.
    pub fn has(&self, name: &str) -> bool {
        self.path_of(name).symlink_metadata().is_ok()
    }

    /// The bytes of the file `name`, if there is one.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn read(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let path = self.path_of(name);
        match self.has(name) {
            true => std::fs::read(&path).map(Some).map_err(Error::io(&path)),
            false => Ok(None),
        }
    }

    /// The value of the JSON file `name`, if there is one.
    ///
    /// # Errors
    /// If it cannot be read, or is not JSON.
    pub fn json(&self, name: &str) -> Result<Option<Value>> {
        self.has(name).then(|| read_json(&self.path_of(name))).transpose()
    }

    /// The tensors.
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub fn checkpoint(&self) -> Result<Checkpoint> {
        Checkpoint::open(&self.path)
    }
}
