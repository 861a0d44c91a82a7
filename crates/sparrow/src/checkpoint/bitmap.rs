//! A pruned matrix: the elements that are not zero, and a bitmap of where they belong.
//!
//! In a file it is several tensors, those of the `sparse-bitmask` format of compressed-tensors, named after the layer:
//!
//! | tensor | dtype | shape | what |
//! |---|---|---|---|
//! | `LAYER.shape` | I64 | `[2]` | rows and columns |
//! | `LAYER.bitmask` | U8 | `[rows, ⌈cols/8⌉]` | bit i mod 8 of byte i / 8 (the lowest first): element i is stored |
//! | `LAYER.compressed` | F32, F16, BF16, I8; U8 for int4 | `[stored]` | the stored elements, row after row |
//! | `LAYER.row_offsets` | I64 | `[rows]` | where a row's elements begin in `compressed` |
//! | `LAYER.weight_scale` | F32 for int8; F16 for int4 | `[rows, 1]`; `[rows, groups]` | quantised elements are multiplied by it; of int8 as in the format `int-quantized`, int4 is not part of either |
//!
//! An int4 matrix holds nibbles (the value plus 8), those of every 32 columns padded to whole bytes, the first in the low half;
//! its offsets count bytes. Rows are complete in themselves, so any number of threads can share them, and any row can be
//! gathered alone. A neuron-major down projection is stored likewise under `LAYER.neuron_major`.

use std::borrow::Cow;

use safetensors::Dtype;
use sparrow_kernels::{BitmapParts, DType};

use super::Checkpoint;
use super::entry::file_dtype;
use super::write::Pending;
use crate::error::Result;
use crate::tensor::BitmapTensor;
use crate::weights::NEURON_MAJOR;

/// The tensors that a matrix is stored in, without the layer's name.
const PARTS: [&str; 5] = ["shape", "bitmask", "compressed", "row_offsets", "weight_scale"];

/// What the tensors of the matrix `weight` begin with.
pub fn bitmap_prefix(weight: &str) -> Option<String> {
    match weight.strip_suffix(NEURON_MAJOR) {
        Some(layer) => Some(format!("{layer}neuron_major")),
        None => weight.strip_suffix(".weight").map(str::to_owned),
    }
}

/// The matrix `[rows, cols]` whose tensors begin with `layer`, mapped but for its mask.
///
/// # Errors
/// If a tensor is missing or has another dtype or shape, or they contradict each other: offsets are compared with the
/// counts of the bitmap's bits.
pub(super) fn read(checkpoint: &mut Checkpoint, layer: &str, rows: usize, cols: usize) -> Result<BitmapTensor> {
    let [shape, bitmask, compressed, row_offsets, weight_scale] = PARTS.map(|part| format!("{layer}.{part}"));
    let found = integers(&checkpoint.part(&shape, &[Dtype::I64], &[Some(2)])?.bytes);
    if found != [rows as i64, cols as i64] {
        return Err(checkpoint.wrong(&shape, format!("[{rows}, {cols}]"), format!("{found:?}")));
    }
    let mask = checkpoint.part(&bitmask, &[Dtype::U8], &[Some(rows), Some(cols.div_ceil(8))])?.bytes.to_memory()?;
    let offsets = checkpoint.part(&row_offsets, &[Dtype::I64], &[Some(rows)])?.bytes;
    let kinds = [Dtype::F32, Dtype::F16, Dtype::BF16, Dtype::I8, Dtype::U8];
    let values = checkpoint.part(&compressed, &kinds, &[None])?;
    let none = values.bytes.part(0..0);
    let (dtype, scales) = match values.dtype {
        Dtype::F32 => (DType::F32, none),
        Dtype::F16 => (DType::F16, none),
        Dtype::BF16 => (DType::BF16, none),
        Dtype::I8 => (DType::I8, checkpoint.part(&weight_scale, &[Dtype::F32], &[Some(rows), Some(1)])?.bytes),
        _ => {
            let scales = checkpoint.part(&weight_scale, &[Dtype::F16], &[Some(rows), None])?;
            let groups = [(DType::I4G32, 32), (DType::I4G128, 128)];
            let Some((dtype, _)) = groups.into_iter().find(|(_, group)| scales.shape[1] == cols.div_ceil(*group))
            else {
                let expected = format!("a scale for every 32 or 128 of the {cols} columns");
                return Err(checkpoint.wrong(&weight_scale, expected, format!("{} in a row", scales.shape[1])));
            };
            (dtype, scales.bytes)
        }
    };
    // A negative offset becomes one beyond every file.
    let offsets = integers(&offsets).into_iter().map(|offset| u64::try_from(offset).unwrap_or(u64::MAX));
    let offsets = offsets.chain([values.shape[0] as u64]).collect();
    let parts = [mask, values.bytes, scales];
    BitmapTensor::from_parts(dtype, [rows, cols], parts, offsets)
        .map_err(|error| checkpoint.wrong(&compressed, "a consistent bitmap".into(), error.to_string()))
}

/// The tensors that a file holds, of the matrix called `layer`.
pub fn bitmap_pending<'a>(tensor: &'a BitmapTensor, layer: &str) -> Vec<Pending<'a>> {
    let BitmapParts { dtype, rows, cols, mask, offsets, values, scales } = tensor.parts();
    let [shape, bitmask, compressed, row_offsets, weight_scale] = PARTS.map(|part| format!("{layer}.{part}"));
    let (kind, scale) = match dtype {
        DType::I8 => (Dtype::I8, Dtype::F32),
        quantized if quantized.is_quantized() => (Dtype::U8, Dtype::F16),
        float => (file_dtype(float), Dtype::F32),
    };
    let integers = |values: Vec<u64>| values.into_iter().flat_map(u64::to_le_bytes).collect::<Vec<u8>>();
    let stored = offsets[rows] as usize;
    let mut tensors = vec![
        of(shape, Dtype::I64, vec![2], integers(vec![rows as u64, cols as u64]).into()),
        of(bitmask, Dtype::U8, vec![rows, cols.div_ceil(8)], mask.into()),
        of(compressed, kind, vec![stored], values.into()),
        of(row_offsets, Dtype::I64, vec![rows], integers(offsets[..rows].to_vec()).into()),
    ];
    if !scales.is_empty() {
        let groups = scales.len() / (rows * scale.bitsize() / 8);
        tensors.push(of(weight_scale, scale, vec![rows, groups], scales.into()));
    }
    tensors
}

fn of(name: String, dtype: Dtype, shape: Vec<usize>, bytes: Cow<'_, [u8]>) -> Pending<'_> {
    let len = bytes.len();
    Pending { name, dtype, shape, len, bytes: Box::new(move || bytes.clone()) }
}

/// The values of an I64 tensor.
fn integers(bytes: &[u8]) -> Vec<i64> {
    bytes.as_chunks().0.iter().map(|&b| i64::from_le_bytes(b)).collect()
}
