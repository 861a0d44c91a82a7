//! The files of a model by name, wherever they are.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;
use sparrow_kernels::DType;

use super::config::{GenerationConfig, require_dir};
use super::fields::read_json;
use super::gguf::{Gguf, Matrices};
use super::safetensors::Checkpoint;
use super::write::{Directory, pretty};
use crate::error::{Error, Result};
use crate::tensor::read::whole;

/// Bytes of a file that is read whole, at most: the largest tokenizers have a tenth of it.
const LIMIT: u64 = 1 << 28;

/// What the files of a model say: those of a Hugging Face directory, or a GGUF file as if it were one.
#[derive(Debug, Clone)]
pub struct ModelFiles {
    path: PathBuf,
    gguf: Option<Arc<Gguf>>,
    /// What the matrices of a GGUF file become.
    matrices: Matrices,
    /// Nothing is decoded.
    blank: bool,
}

impl ModelFiles {
    /// The files in the directory `path`, of which there is not checked yet which there are; or what the GGUF file `path` says.
    ///
    /// # Errors
    /// If it is a GGUF file that cannot be read.
    pub fn open(path: &Path) -> Result<Self> {
        let gguf = Gguf::is_at(path).then(|| Gguf::open(path)).transpose()?;
        Ok(ModelFiles {
            path: path.to_owned(),
            gguf: gguf.map(Arc::new),
            matrices: Matrices::Decoded(None),
            blank: false,
        })
    }

    /// Has the matrices of a GGUF file decoded to this type, instead of bf16 where they are blocks.
    pub fn decoded_to(mut self, dtype: Option<DType>) -> Self {
        self.matrices = Matrices::Decoded(dtype);
        self
    }

    /// Has the matrices of a GGUF file left as they are, to be computed with.
    pub fn as_stored(mut self) -> Self {
        self.matrices = Matrices::AsStored;
        self
    }

    /// Has the matrices of a GGUF file left blank, where only their shapes are wanted.
    pub fn blank(mut self) -> Self {
        self.blank = true;
        self
    }

    /// The GGUF file, if it is one.
    pub fn gguf(&self) -> Option<&Gguf> {
        self.gguf.as_deref()
    }

    /// Where they are.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Refuses what cannot be a model.
    ///
    /// # Errors
    /// Says what a model is instead.
    pub fn require_model(&self) -> Result<()> {
        if self.gguf.is_some() { Ok(()) } else { require_dir(&self.path) }
    }

    /// What messages call the file `name`.
    pub fn path_of(&self, name: &str) -> PathBuf {
        if self.gguf.is_some() { self.path.clone() } else { self.path.join(name) }
    }

    /// Whether there is a file `name`, be it one that cannot be read.
    pub fn has(&self, name: &str) -> bool {
        match &self.gguf {
            Some(gguf) => gguf.has(name),
            None => self.path_of(name).symlink_metadata().is_ok(),
        }
    }

    /// The bytes of the file `name`, if there is one.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn read(&self, name: &str) -> Result<Option<Vec<u8>>> {
        if !self.has(name) {
            return Ok(None);
        }
        match &self.gguf {
            Some(gguf) => Ok(gguf.json(name)?.map(|json| json.to_string().into_bytes())),
            None => whole(&self.path_of(name), LIMIT).map(Some),
        }
    }

    /// The value of the JSON file `name`, if there is one.
    ///
    /// # Errors
    /// If it cannot be read, or is not JSON.
    pub fn json(&self, name: &str) -> Result<Option<Value>> {
        match &self.gguf {
            Some(gguf) => gguf.json(name),
            None => self.has(name).then(|| read_json(&self.path_of(name))).transpose(),
        }
    }

    /// What ends a text, from `generation_config.json` (if it is there) and `config.json`.
    ///
    /// # Errors
    /// If a file that is there cannot be read or parsed.
    pub fn generation_config(&self) -> Result<GenerationConfig> {
        let mut generation = GenerationConfig::default();
        for name in ["generation_config.json", "config.json"] {
            if let Some(json) = self.json(name)? {
                generation.add(&self.path_of(name), &json)?;
            }
        }
        Ok(generation)
    }

    /// The tensors.
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub fn checkpoint(&self) -> Result<Checkpoint> {
        match &self.gguf {
            Some(gguf) => Checkpoint::of_gguf(gguf, self.matrices, self.blank),
            None => Checkpoint::open(&self.path),
        }
    }

    /// Copies every file that is neither weights nor an index nor called `except` to `directory`; of a GGUF file what it says instead
    /// of them.
    ///
    /// # Errors
    /// If a file cannot be read or written.
    pub fn copy_companions(&self, directory: &Directory, except: &str) -> Result<()> {
        if self.gguf.is_some() {
            for name in ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"] {
                if let Some(json) = self.json(name)? {
                    directory.text(name, &pretty(&json))?;
                }
            }
            return Ok(());
        }
        for entry in std::fs::read_dir(&self.path).map_err(Error::io(&self.path))? {
            let path = entry.map_err(Error::io(&self.path))?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let companion = [".json", ".jinja", ".txt", ".md", ".model"].iter().any(|end| name.ends_with(end));
            let replaced = name.ends_with(".safetensors.index.json") || name == except;
            if path.is_file() && companion && !replaced {
                std::fs::copy(&path, directory.path().join(name)).map_err(Error::io(&path))?;
            }
        }
        Ok(())
    }
}
