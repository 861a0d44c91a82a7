//! The tensors of a changed directory: a file for each layer, written when the layer is done, and one for the rest.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::PathBuf;

use safetensors::Dtype;
use serde_json::Value;
use sparrow::Result;
use sparrow::internals::checkpoint::{Checkpoint, Directory, Pending, TensorInfo, shard_name};
use sparrow::internals::spec::names::TensorNames;

/// A tensor to write.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct NewTensor {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    /// Little-endian.
    pub bytes: Vec<u8>,
}

/// By the name of a tensor of the original, what is written in its place.
pub(crate) type Replaced = BTreeMap<String, Vec<NewTensor>>;

/// Which file of the output each tensor goes to.
pub(crate) struct Shards<'a> {
    pub directory: &'a Directory,
    pub source: &'a Checkpoint,
    pub names: &'a TensorNames,
    pub layers: usize,
}

impl Shards<'_> {
    /// The file of a layer, or of the rest for the number after the last layer.
    pub fn path(&self, shard: usize) -> PathBuf {
        self.directory.path().join(self.file(shard))
    }

    fn file(&self, shard: usize) -> String {
        shard_name(shard, self.layers + 1)
    }

    fn of(&self, tensor: &str) -> usize {
        let layer = |l: &usize| tensor.strip_prefix(&self.names.layer(*l, "")).is_some();
        (0..self.layers).find(layer).unwrap_or(self.layers)
    }

    /// Writes a file: its tensors as they are, but for those that are `replaced`. The originals' pages are released.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write(&self, shard: usize, replaced: &Replaced) -> Result<()> {
        let tensors = self.source.tensors().filter(|info| self.of(&info.name) == shard);
        let pending = |info: TensorInfo| match replaced.get(&info.name) {
            Some(new) => new.iter().map(NewTensor::pending).collect(),
            None => vec![self.source.pending(&info)],
        };
        self.directory.safetensors(&self.file(shard), tensors.flat_map(pending).collect())?;
        self.source.release(|name| self.of(name) == shard);
        Ok(())
    }

    /// Writes what belongs to no layer, and the index, once the layers are there.
    ///
    /// # Errors
    /// If files cannot be read or written.
    pub fn write_rest(&self) -> Result<()> {
        self.write(self.layers, &Replaced::new())?;
        let (mut total, mut files) = (0, serde_json::Map::new());
        for shard in 0..=self.layers {
            for info in Checkpoint::open_file(&self.path(shard))?.tensors() {
                total += info.bytes;
                files.insert(info.name, Value::from(self.file(shard)));
            }
        }
        self.directory.index(total, files)
    }
}

impl NewTensor {
    fn pending(&self) -> Pending<'_> {
        Pending {
            name: self.name.clone(),
            dtype: self.dtype,
            shape: self.shape.clone(),
            len: self.bytes.len(),
            bytes: Box::new(|| Cow::Borrowed(&self.bytes)),
        }
    }
}
