//! The tensors of a pruned directory: a file for each layer, written when the layer is done, and one for the rest.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::Value;
use sparrow::Result;
use sparrow::internals::checkpoint::{Checkpoint, Directory, Pending, TensorInfo, shard_name};
use sparrow::internals::spec::names::TensorNames;
use sparrow_kernels::decode;

use super::record::LayerRecord;
use super::tensors::Prunable;

/// Which file of the output each tensor goes to.
pub(super) struct Shards<'a> {
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

    /// Writes a file: its tensors as they are, but for those of `pruned`. The originals' pages are released.
    pub fn write(&self, shard: usize, pruned: &BTreeMap<String, Vec<u8>>) -> Result<()> {
        let pending = |info: TensorInfo| {
            let original = self.source.pending(&info);
            match pruned.get(&info.name) {
                Some(bytes) => Pending { bytes: Box::new(|| Cow::Borrowed(bytes)), ..original },
                None => original,
            }
        };
        let tensors = self.source.tensors().filter(|info| self.of(&info.name) == shard);
        self.directory.safetensors(&self.file(shard), tensors.map(pending).collect())?;
        self.source.release(|name| self.of(name) == shard);
        Ok(())
    }

    /// Writes what belongs to no layer, and the index, once the layers are there.
    pub fn write_rest(&self) -> Result<()> {
        self.write(self.layers, &BTreeMap::new())?;
        let total = self.source.tensors().map(|info| self.source.pending(&info).len).sum();
        let files = self.source.tensors().map(|info| {
            let file = self.file(self.of(&info.name));
            (info.name, Value::from(file))
        });
        self.directory.index(total, files.collect())
    }
}

/// Zeros ÷ weights over all of `chosen`, and what became of each layer, as the files have it.
///
/// # Errors
/// If a tensor cannot be read.
pub(super) fn measure(
    written: &Checkpoint,
    chosen: &[Vec<Prunable>],
    targets: &[f64],
) -> Result<(f64, Vec<LayerRecord>)> {
    let (mut zeros, mut weights) = (0, 0);
    let mut tensor = |matrix: &Prunable| {
        let (mut row, stored) = (vec![0.0; matrix.cols], matrix.weights(written)?);
        let mut here = 0;
        for r in 0..matrix.rows {
            decode(matrix.dtype, stored.matrix().row(r), &mut row);
            here += row.iter().filter(|w| **w == 0.0).count();
        }
        written.release(|name| name == matrix.name);
        let of = matrix.rows * matrix.cols;
        (zeros, weights) = (zeros + here, weights + of);
        Ok((matrix.name.clone(), here as f64 / of as f64))
    };
    let layers = chosen
        .iter()
        .zip(targets)
        .map(|(matrices, &target)| {
            let tensors = matrices.iter().map(&mut tensor).collect::<Result<_>>()?;
            Ok(LayerRecord { target, tensors })
        })
        .collect::<Result<_>>()?;
    Ok((zeros as f64 / weights as f64, layers))
}
