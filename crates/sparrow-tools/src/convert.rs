//! GGUF files as Hugging Face directories.

use std::path::Path;

use sparrow::internals::checkpoint::{Directory, ModelFiles};
use sparrow::{DType, Error, Result};

/// Writes what the GGUF file at `path` holds as the new directory `out`: its weights in `dtype`, otherwise blocks in bf16 and floats
/// as they are. `progress(done, total)` is in bytes.
///
/// # Errors
/// If the file cannot be read or is no GGUF file, `dtype` is a quantised type, or `out` exists or cannot be written.
pub fn convert(path: &Path, out: &Path, dtype: Option<DType>, mut progress: impl FnMut(u64, u64)) -> Result<()> {
    const SHARD_BYTES: usize = 4 << 30;
    if let Some(quantized) = dtype.filter(|dtype| dtype.is_quantized()) {
        return Err(Error::option("dtype", format!("is {quantized}: converted weights are f32, f16 or bf16")));
    }
    let files = ModelFiles::open(path)?.decoded_to(dtype);
    if files.gguf().is_none() {
        return Err(Error::option("model", format!("{} is no GGUF file: there is nothing to convert", path.display())));
    }
    let checkpoint = files.checkpoint()?;
    let directory = Directory::create(out)?;
    files.copy_companions(&directory, "")?;
    let tensors: Vec<_> = checkpoint.tensors().map(|info| checkpoint.pending(&info)).collect();
    let total = tensors.iter().map(|tensor| tensor.len as u64).sum();
    let mut done = 0;
    progress(0, total);
    directory.shards(tensors, SHARD_BYTES, |bytes| {
        done += bytes;
        progress(done, total);
    })?;
    directory.finish()
}
