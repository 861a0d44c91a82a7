//! GGUF files, as llama.cpp and what is built on it use them: one file holds weights, configuration, tokenizer and chat template.
//! Format: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>.
//!
//! What a Hugging Face directory has in files of its own is made from the metadata here, so that everything else is as with such
//! a directory. Tensors get the names and the order of rows that these have too.

mod arrangement;
mod config;
mod element;
mod file;
mod keys;
mod names;
mod reader;
mod rope;
mod split;
mod tokenizer;
mod value;

use std::path::{Path, PathBuf};

use serde_json::Value as Json;
use sparrow_kernels::DType;

use super::config::parse_config;
use crate::error::{Error, Result};

pub(super) use arrangement::Coded;
pub(super) use element::name as element_name;
pub use file::{StoredTensor, Tensors};
pub use value::{Metadata, Value};

/// A model in a GGUF file, or in the parts of one that was split.
#[derive(Debug)]
pub struct Gguf {
    path: PathBuf,
    metadata: Metadata,
    /// By the names of the file.
    tensors: Tensors,
}

/// What the matrices of a file become.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Matrices {
    /// They stay what they are: kernels compute with blocks.
    AsStored,
    /// Floats of this type; where none is given blocks become bf16, and floats stay what they are.
    Decoded(Option<DType>),
}

/// A tensor in its place in a checkpoint.
pub(super) struct Placed<'a> {
    /// What it is called there.
    pub name: String,
    /// Where it is stored.
    pub tensor: &'a StoredTensor,
    /// What it becomes.
    pub dtype: DType,
    /// How, where it is not that already.
    pub coded: Option<Coded>,
}

impl Gguf {
    /// Whether `path` is a file that should be read as GGUF.
    pub fn is_at(path: &Path) -> bool {
        path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf")) && !path.is_dir()
    }

    /// The names of the files of a model whose first is called `name`.
    pub fn parts(name: &str) -> Vec<String> {
        split::parts(name)
    }

    /// Reads the headers of the file, and of the others that belong to it.
    ///
    /// # Errors
    /// If a file is missing, cut off or malformed, or has tensors of a type that cannot be read; the message names them.
    pub fn open(path: &Path) -> Result<Self> {
        let mut tensors = Tensors::new();
        let metadata = file::read(path, &mut tensors)?;
        split::read_others(path, &metadata, &mut tensors)?;
        Ok(Gguf { path: path.to_owned(), metadata, tensors })
    }

    /// The first file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What the file says of the model.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// The tensors, by the names of the file.
    pub fn tensors(&self) -> impl Iterator<Item = (&str, &StoredTensor)> {
        self.tensors.iter().map(|(name, tensor)| (name.as_str(), tensor))
    }

    /// The file of a Hugging Face directory that says the same, if there is such a one.
    ///
    /// # Errors
    /// If the metadata it is made from is missing, or describes what is not supported.
    pub fn json(&self, name: &str) -> Result<Option<Json>> {
        Ok(match name {
            "config.json" => Some(config::config(&self.metadata, &self.tensors)?),
            "generation_config.json" => Some(tokenizer::generation_config(&self.metadata)?),
            "tokenizer.json" if self.has(name) => Some(tokenizer::tokenizer(&self.metadata)?),
            "tokenizer_config.json" if self.has(name) => Some(tokenizer::config(&self.metadata)?),
            _ => None,
        })
    }

    /// Whether there is something to say in the file `name` of a Hugging Face directory.
    pub fn has(&self, name: &str) -> bool {
        match name {
            "config.json" | "generation_config.json" => true,
            "tokenizer.json" | "tokenizer_config.json" => self.metadata.has(tokenizer::TOKENS),
            _ => false,
        }
    }

    /// Every tensor by the name it has in a Hugging Face checkpoint. Matrices become what `matrices` says; norms and biases
    /// become f32.
    ///
    /// # Errors
    /// As [`json`](Self::json), or if a tensor belongs to no model of this architecture.
    pub(super) fn placed(&self, matrices: Matrices) -> Result<Vec<Placed<'_>>> {
        let spec = parse_config(&self.path, &config::config(&self.metadata, &self.tensors)?)?;
        let interleaved = config::architecture(&self.metadata)?.interleaves_rotary;
        let mut placed = Vec::new();
        for (stored_name, tensor) in &self.tensors {
            let name = match names::place(stored_name, &spec) {
                Some(names::Place::Tensor(name)) => name,
                Some(names::Place::Nowhere) => continue,
                None => {
                    let message =
                        format!("tensor {stored_name} is not part of a model of architecture {}", spec.architecture);
                    return Err(Error::gguf(tensor.file.path(), message));
                }
            };
            let becomes = match (tensor.shape.len(), matrices) {
                (1, _) => DType::F32,
                (_, Matrices::Decoded(Some(dtype))) => dtype,
                (_, Matrices::Decoded(None)) if tensor.dtype.is_quantized() => DType::BF16,
                _ => tensor.dtype,
            };
            let arrangement = arrangement::of(stored_name, tensor, &spec, interleaved)?;
            let coded = Coded::of(tensor.dtype, arrangement, becomes);
            placed.push(Placed { name, tensor, dtype: becomes, coded });
        }
        Ok(placed)
    }
}
