//! Checkpoints with random weights.

use std::borrow::Cow;
use std::path::Path;

use sparrow::Result;
use sparrow::internals::checkpoint::{Directory, Pending, file_dtype, pretty};
use sparrow_kernels::{DType, encode};

/// Writes a checkpoint of that shape with random weights (the same every time), in shards: for comparing engines. With
/// `neuron_major`, down projections are written as `sparsify` writes them, for selectors that need no calibration.
/// Of each matrix of the layers and of the head the fraction `zeros` is 0. `progress(done, total)` is in bytes.
///
/// # Errors
/// If the shape is not known, or `out` exists or cannot be written.
pub fn synthesize(
    shape: &str,
    dtype: DType,
    neuron_major: bool,
    zeros: f64,
    out: &Path,
    mut progress: impl FnMut(u64, u64),
) -> Result<()> {
    const SHARD_BYTES: usize = 1 << 30;
    let config = crate::shapes::config(shape, dtype)?;
    let directory = Directory::create(out)?;
    let spec = crate::shapes::spec(shape)?;
    let zeros_of = |name: &str| if spec.is_of_layer_or_head(name) { zeros } else { 0.0 };
    let mut tensors = Vec::new();
    for (name, dimensions) in crate::shapes::parameters(&spec, neuron_major)? {
        let len = dimensions.iter().product::<usize>() * dtype.row_bytes(1);
        let (tensor, cols) = (name.clone(), dimensions.get(1).copied());
        let bytes = move || {
            let mut out = vec![0; len];
            match cols {
                Some(cols) => crate::shapes::fill_random(&tensor, dtype, cols, zeros_of(&tensor), &mut out),
                None => encode(dtype, &vec![1.0; len / dtype.row_bytes(1)], &mut out),
            }
            Cow::Owned(out)
        };
        tensors.push(Pending { name, dtype: file_dtype(dtype), shape: dimensions, len, bytes: Box::new(bytes) });
    }
    let total = tensors.iter().map(|t| t.len as u64).sum();
    let mut done = 0;
    progress(0, total);
    directory.text("config.json", &pretty(&config))?;
    directory.text("generation_config.json", &pretty(&serde_json::json!({ "bos_token_id": 1, "eos_token_id": 2 })))?;
    directory.shards(tensors, SHARD_BYTES, |bytes| {
        done += bytes;
        progress(done, total);
    })?;
    directory.finish()
}
