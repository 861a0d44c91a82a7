//! The file beside changed weights that says what was done to them.

use std::path::Path;

use serde::de::DeserializeOwned;
use sparrow::internals::checkpoint::read_json;
use sparrow::{Error, Result};

/// The record at `path`, if there is one.
///
/// # Errors
/// If it is malformed or of another version; the message names the field.
pub(crate) fn read_record<R: DeserializeOwned>(path: &Path, version: u32) -> Result<Option<R>> {
    if path.symlink_metadata().is_err() {
        return Ok(None);
    }
    let json = read_json(path)?;
    let found = json.get("format_version").cloned().unwrap_or_default();
    if found != version {
        let message = format!("field format_version: expected {version}, found {found}: remove the file");
        return Err(Error::config(path, message));
    }
    serde_path_to_error::deserialize(json).map(Some).map_err(|e| Error::config(path, format!("field {e}")))
}
