//! A Hugging Face directory on disk, or a GGUF file: `config.json` → [`ModelSpec`](crate::spec::ModelSpec), safetensors → checked,
//! mapped tensors.
//!
//! All names, dtypes and shapes are checked here, once; what comes out needs no further checks.

mod absent;
mod bitmap;
mod compressed;
pub mod config;
mod entry;
mod fields;
mod files;
mod fingerprint;
mod gguf;
pub mod hub;
mod prefix;
mod rows;
mod safetensors;
mod source;
mod write;

pub use bitmap::{bitmap_pending, bitmap_prefix};
pub use config::require_dir;
pub use entry::{TensorInfo, file_dtype};
pub use fields::read_json;
pub use files::ModelFiles;
pub use fingerprint::{fingerprint, hex};
pub use gguf::{Gguf, Metadata as GgufMetadata, Value as GgufValue};
pub use safetensors::{Checkpoint, Decoded};
pub use write::{Directory, Pending, pretty, shard_name};
