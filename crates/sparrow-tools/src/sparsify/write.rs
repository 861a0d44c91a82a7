//! The tensors of a sparsified directory.

use std::borrow::Cow;

use sparrow::internals::backend::{InputNorms, Predictor};
use sparrow::internals::checkpoint::{Checkpoint, Directory, Pending, file_dtype};
use sparrow::internals::record::SidecarFile;
use sparrow::internals::select::{gate_neuron_tensors, norm_tensors, predictor_tensors};
use sparrow::internals::spec::names::TensorNames;
use sparrow::internals::weights::NEURON_MAJOR;
use sparrow::{Cpu, Result};
use sparrow_kernels::{DType, Matrix, encode, transpose};

use super::options::Stage;

/// Every tensor of the model as it is, except the down projections, which become neuron-major, where tensors have `names`.
pub(crate) fn write_weights(
    directory: &Directory,
    checkpoint: &Checkpoint,
    names: Option<&TensorNames>,
    cpu: &Cpu,
    progress: &mut impl FnMut(Stage, u64, u64),
) -> Result<()> {
    const SHARD_BYTES: usize = 4 << 30;
    let mut tensors = Vec::new();
    for info in checkpoint.tensors() {
        let down = names.and_then(|names| names.down_of(&info.name));
        tensors.push(match (down, info.matrix()) {
            (Some(down), Some((dtype, [rows, cols]))) => {
                let len = rows * dtype.row_bytes(cols);
                let from = info.name.clone();
                let transposed = move || {
                    let bytes = checkpoint.bytes(&from).expect("listed tensors exist");
                    let mut out = vec![0; len];
                    transpose(&cpu.compute, Matrix::new(dtype, rows, cols, &bytes), &mut out);
                    Cow::Owned(out)
                };
                let name = format!("{down}.{NEURON_MAJOR}");
                Pending { name, dtype: info.dtype, shape: vec![cols, rows], len, bytes: Box::new(transposed) }
            }
            _ => checkpoint.pending(&info),
        });
    }
    let total = tensors.iter().map(|t| t.len as u64).sum();
    let mut done = 0;
    progress(Stage::Writing, 0, total);
    directory.shards(tensors, SHARD_BYTES, |bytes| {
        done += bytes;
        progress(Stage::Writing, done, total);
    })
}

pub(super) fn write_predictors(directory: &Directory, predictors: &[Predictor]) -> Result<()> {
    let mut tensors = Vec::new();
    for (layer, predictor) in predictors.iter().enumerate() {
        let [a, b, bias] = predictor_tensors(layer);
        for (name, tensor) in [(a, &predictor.a), (b, &predictor.b)] {
            tensors.push(Pending {
                name,
                dtype: file_dtype(tensor.dtype()),
                shape: vec![tensor.rows(), tensor.cols()],
                len: tensor.bytes().len(),
                bytes: Box::new(move || Cow::Borrowed(tensor.bytes())),
            });
        }
        tensors.push(vector(bias, &predictor.bias));
    }
    directory.safetensors(SidecarFile::TENSORS, tensors)
}

/// Writes norms of columns as the sidecar's tensors.
///
/// # Errors
/// If the file cannot be written.
pub(super) fn write_norms(directory: &Directory, norms: &[InputNorms]) -> Result<()> {
    let layer = |(layer, norms)| norm_tensors(layer).into_iter().zip::<&InputNorms>(norms);
    let tensors = norms.iter().enumerate().flat_map(layer).map(|(name, values)| vector(name, values));
    directory.safetensors(SidecarFile::TENSORS, tensors.collect())
}

/// Writes weights of neurons, and what stands for them where they are left out, as the sidecar's tensors.
///
/// # Errors
/// If the file cannot be written.
pub(super) fn write_gate_neurons(directory: &Directory, neurons: &[[Vec<f32>; 2]]) -> Result<()> {
    let layer = |(layer, values)| gate_neuron_tensors(layer).into_iter().zip::<&[Vec<f32>; 2]>(values);
    let tensors = neurons.iter().enumerate().flat_map(layer).map(|(name, values)| vector(name, values));
    directory.safetensors(SidecarFile::TENSORS, tensors.collect())
}

/// A vector in f32.
fn vector(name: String, values: &[f32]) -> Pending<'_> {
    let len = DType::F32.row_bytes(values.len());
    let bytes = move || {
        let mut out = vec![0; len];
        encode(DType::F32, values, &mut out);
        Cow::Owned(out)
    };
    Pending { name, dtype: file_dtype(DType::F32), shape: vec![values.len()], len, bytes: Box::new(bytes) }
}
