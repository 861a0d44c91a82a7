//! A Hugging Face directory on disk: `config.json` → [`ModelSpec`](crate::ModelSpec), safetensors → checked, mapped tensors.
//!
//! All names, dtypes and shapes are checked here, once; what comes out needs no further checks.

mod bitmap_tensor;
mod compressed;
pub mod config;
mod direct_file;
mod fields;
pub(crate) mod hub;
mod neuron_store;
mod placement;
mod safetensors_files;
mod sidecar;
mod storage;
mod tensor;
mod weight;
mod write;

pub use bitmap_tensor::BitmapTensor;
pub(crate) use bitmap_tensor::prefix as bitmap_prefix;
pub(crate) use config::require_dir;
pub(crate) use fields::read_json;
pub(crate) use neuron_store::{NeuronStore, Places, Reading};
pub use placement::Placement;
pub use safetensors_files::{Checkpoint, TensorInfo};
pub(crate) use sidecar::{fingerprint, hex, predictor_tensors, read_sidecar};
pub use storage::MappedFile;
pub(crate) use storage::Memory;
pub use tensor::Tensor;
pub use weight::Weight;
pub(crate) use write::{Directory, Pending, file_dtype, pretty, shard_name};
