//! Weights by name, however the files store them: whole, quantised or as a bitmap.

use sparrow_kernels::decode;

use super::safetensors::Checkpoint;
use super::{bitmap, compressed};
use crate::error::Result;
use crate::spec::names::TensorNames;
use crate::tensor::{Tensor, Weight};
use crate::weights::Source;

impl Checkpoint {
    /// Whether the checkpoint has a tensor of that name, whole, quantised or as a bitmap.
    pub fn contains(&self, name: &str) -> bool {
        self.stores(name) || compressed::layer_of(self, name).is_some() || self.bitmap_prefix(name).is_some()
    }

    /// The weights `name` of exactly that shape: mapped, or in memory where they are stored quantised (`compressed.rs`).
    ///
    /// # Errors
    /// If the tensor is missing, has another shape, or a dtype other than f32, f16, bf16; or is quantised in a way that cannot
    /// be read.
    pub fn matrix(&mut self, name: &str, rows: usize, cols: usize) -> Result<Tensor> {
        if let Some(layer) = compressed::layer_of(self, name) {
            return compressed::read(self, layer, rows, cols);
        }
        let (entry, dtype) = self.take(name, &[rows, cols])?;
        entry.tensor(dtype, rows, cols)
    }

    /// The weights `name` of exactly that shape, whole or as a bitmap.
    ///
    /// # Errors
    /// As [`Checkpoint::matrix`], or if the parts of a bitmap contradict each other.
    pub fn weight(&mut self, name: &str, rows: usize, cols: usize) -> Result<Weight> {
        match self.bitmap_prefix(name) {
            Some(layer) => Ok(bitmap::read(self, &layer, rows, cols)?.into()),
            None => Ok(self.matrix(name, rows, cols)?.into()),
        }
    }

    /// What the tensors of the weights `name` begin with, if they are stored as a bitmap.
    fn bitmap_prefix(&self, name: &str) -> Option<String> {
        bitmap::bitmap_prefix(name).filter(|layer| !self.stores(name) && self.stores(&format!("{layer}.bitmask")))
    }

    /// Whether the head is stored and is not the embedding. transformers does not tie them then, whatever `config.json` says.
    pub fn has_own_head(&self, names: &TensorNames) -> bool {
        let stored = |name: &str| self.bytes(&format!("{name}.weight"));
        stored(names.head).is_some_and(|head| stored(names.embedding) != Some(head))
    }

    /// The vector `name` of exactly that length, as f32: norms and biases, small enough to copy.
    ///
    /// # Errors
    /// As [`Checkpoint::matrix`].
    pub fn vector(&mut self, name: &str, len: usize) -> Result<Vec<f32>> {
        let (entry, dtype) = self.take(name, &[len])?;
        let mut out = vec![0.0; len];
        decode(dtype, &entry.content(), &mut out);
        Ok(out)
    }
}

impl Source for Checkpoint {
    fn matrix(&mut self, name: &str, rows: usize, cols: usize) -> Result<Tensor> {
        Checkpoint::matrix(self, name, rows, cols)
    }
    fn weight(&mut self, name: &str, rows: usize, cols: usize) -> Result<Weight> {
        Checkpoint::weight(self, name, rows, cols)
    }
    fn vector(&mut self, name: &str, len: usize) -> Result<Vec<f32>> {
        Checkpoint::vector(self, name, len)
    }
    fn contains(&self, name: &str) -> bool {
        Checkpoint::contains(self, name)
    }
}
