//! Reading parts of files, and what is wrong with a file that cannot be read.

use std::fs::File;
use std::path::Path;

use super::damage;
use crate::error::{Error, Result};

/// Size of the file at `path`; refuses what is not a regular file (reading a pipe could wait forever).
///
/// # Errors
/// If there is no such file, or it is not a regular one.
pub fn require_file(path: &Path) -> Result<u64> {
    let metadata = damage::metadata(path)?;
    match metadata.is_file() {
        true => Ok(metadata.len()),
        false => Err(Error::config(path, "is not a regular file")),
    }
}

/// The content of the file at `path`, of at most `limit` bytes.
///
/// # Errors
/// If it cannot be read, is longer, or is [something else](damage::check).
pub fn whole(path: &Path, limit: u64) -> Result<Vec<u8>> {
    let size = require_file(path)?;
    if size > limit {
        return Err(Error::config(path, format!("is {size} bytes long; such a file has at most {limit}")));
    }
    let content = std::fs::read(path).map_err(Error::io(path))?;
    damage::check(path, &content)?;
    Ok(content)
}

/// The error of a file that ends early.
pub fn truncated(path: &Path, needed: u64, end: u64) -> Error {
    let message = format!(
        "ends at byte {end}, but weights up to byte {needed} were there when it was opened: it was truncated; restore it \
         and load the model again"
    );
    Error::safetensors(path, message)
}

/// Reads at `offset`, fewer bytes at the end of the file.
#[cfg(unix)]
pub fn read_at(file: &File, buffer: &mut [u8], offset: u64) -> std::io::Result<usize> {
    std::os::unix::fs::FileExt::read_at(file, buffer, offset)
}

/// Reads at `offset`, fewer bytes at the end of the file.
#[cfg(windows)]
pub fn read_at(file: &File, buffer: &mut [u8], offset: u64) -> std::io::Result<usize> {
    std::os::windows::fs::FileExt::seek_read(file, buffer, offset)
}
