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
use std::ops::Range;
use std::sync::Arc;

use safetensors::Dtype;
use sparrow_kernels::{Bitmap, BitmapParts, Compute, DType, count_stored, fill_bitmap, unpack};

use super::storage::{Bytes, Memory};
use super::tensor::Tensor;
use super::{Checkpoint, Pending, file_dtype};
use crate::error::Result;
use crate::model::weights::NEURON_MAJOR;

/// A matrix of weights stored as a bitmap and the elements that are not zero; cheap to clone.
#[derive(Debug, Clone)]
pub struct BitmapTensor {
    dtype: DType,
    rows: usize,
    cols: usize,
    mask: Bytes,
    values: Bytes,
    scales: Bytes,
    /// `rows + 1`; copied, since files may hold them at any address.
    offsets: Arc<[u64]>,
}

/// The tensors that a matrix is stored in, without the layer's name.
const PARTS: [&str; 5] = ["shape", "bitmask", "compressed", "row_offsets", "weight_scale"];

/// What the tensors of the matrix `weight` begin with.
pub(crate) fn prefix(weight: &str) -> Option<String> {
    match weight.strip_suffix(NEURON_MAJOR) {
        Some(layer) => Some(format!("{layer}neuron_major")),
        None => weight.strip_suffix(".weight").map(str::to_owned),
    }
}

impl BitmapTensor {
    /// The matrix `[rows, cols]` whose tensors begin with `layer`, mapped.
    ///
    /// # Errors
    /// If a tensor is missing or has another dtype or shape, or they contradict each other: offsets are compared with the
    /// counts of the bitmap's bits.
    pub(crate) fn read(checkpoint: &mut Checkpoint, layer: &str, rows: usize, cols: usize) -> Result<Self> {
        let [shape, bitmask, compressed, row_offsets, weight_scale] = PARTS.map(|part| format!("{layer}.{part}"));
        let found = integers(&checkpoint.part(&shape, &[Dtype::I64], &[Some(2)])?.bytes);
        if found != [rows as i64, cols as i64] {
            return Err(checkpoint.wrong(&shape, format!("[{rows}, {cols}]"), format!("{found:?}")));
        }
        let mask = checkpoint.part(&bitmask, &[Dtype::U8], &[Some(rows), Some(cols.div_ceil(8))])?.bytes;
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
        let tensor = BitmapTensor { dtype, rows, cols, mask, values: values.bytes, scales, offsets };
        match tensor.parts().check() {
            Ok(()) => Ok(tensor),
            Err(error) => Err(checkpoint.wrong(&compressed, "a consistent bitmap".into(), error.to_string())),
        }
    }

    /// The elements of `tensor` that are not zero, in memory.
    ///
    /// # Errors
    /// If the memory cannot be had.
    pub(crate) fn pack(tensor: &Tensor, compute: &Compute) -> Result<Self> {
        let (offsets, sizes) = count_stored(compute, tensor.matrix());
        let [mut mask, mut values, mut scales] =
            [Memory::zeroed(sizes.mask)?, Memory::zeroed(sizes.values)?, Memory::zeroed(sizes.scales)?];
        fill_bitmap(compute, tensor.matrix(), &offsets, &mut mask, &mut values, &mut scales);
        let [mask, values, scales] = [Bytes::of(mask)?, Bytes::of(values)?, Bytes::of(scales)?];
        let (dtype, rows, cols) = (tensor.dtype(), tensor.rows(), tensor.cols());
        Ok(BitmapTensor { dtype, rows, cols, mask, values, scales, offsets: offsets.into() })
    }

    /// The matrix with every element stored, in memory.
    ///
    /// # Errors
    /// If the memory cannot be had.
    pub(crate) fn unpack(&self, compute: &Compute) -> Result<Tensor> {
        Tensor::in_memory(self.dtype, self.rows, self.cols, |out| unpack(compute, self.bitmap(), out))
    }

    /// The view that kernels take.
    #[allow(unsafe_code)]
    pub fn bitmap(&self) -> Bitmap<'_> {
        // SAFETY: the parts were checked when they were read, or made by packing, and nothing changes them.
        unsafe { Bitmap::new_unchecked(self.parts()) }
    }

    fn parts(&self) -> BitmapParts<'_> {
        let BitmapTensor { dtype, rows, cols, mask, values, scales, offsets } = self;
        BitmapParts { dtype: *dtype, rows: *rows, cols: *cols, mask, offsets, values, scales }
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Bytes that reading all of it takes.
    pub fn byte_len(&self) -> u64 {
        self.bitmap().bytes() as u64
    }

    /// The stored elements.
    pub(crate) fn values(&self) -> &Bytes {
        &self.values
    }

    /// The tensors that a file holds, of the matrix called `layer`.
    pub(crate) fn pending(&self, layer: &str) -> Vec<Pending<'_>> {
        let &BitmapTensor { dtype, rows, cols, .. } = self;
        let [shape, bitmask, compressed, row_offsets, weight_scale] = PARTS.map(|part| format!("{layer}.{part}"));
        let (kind, scale) = match dtype {
            DType::I8 => (Dtype::I8, Dtype::F32),
            quantized if quantized.is_quantized() => (Dtype::U8, Dtype::F16),
            float => (file_dtype(float), Dtype::F32),
        };
        let integers = |values: Vec<u64>| values.into_iter().flat_map(u64::to_le_bytes).collect::<Vec<u8>>();
        let stored = self.offsets[rows] as usize;
        let mut tensors = vec![
            of(shape, Dtype::I64, vec![2], integers(vec![rows as u64, cols as u64]).into()),
            of(bitmask, Dtype::U8, vec![rows, cols.div_ceil(8)], self.mask[..].into()),
            of(compressed, kind, vec![stored], self.values[..].into()),
            of(row_offsets, Dtype::I64, vec![rows], integers(self.offsets[..rows].to_vec()).into()),
        ];
        if !self.scales.is_empty() {
            let groups = self.scales.len() / (rows * scale.bitsize() / 8);
            tensors.push(of(weight_scale, scale, vec![rows, groups], self.scales[..].into()));
        }
        tensors
    }

    /// The rows `range`, sharing the bytes.
    ///
    /// # Panics
    /// If the range is out of bounds.
    pub fn row_range(&self, range: Range<usize>) -> BitmapTensor {
        assert!(range.start <= range.end && range.end <= self.rows, "row range out of bounds");
        let rows = |bytes: &Bytes| {
            let row = bytes.len() / self.rows.max(1);
            bytes.part(range.start * row..range.end * row)
        };
        let (first, last) = (self.offsets[range.start] as usize, self.offsets[range.end] as usize);
        let unit = self.values.len() / (self.offsets[self.rows] as usize).max(1);
        BitmapTensor {
            rows: range.len(),
            mask: rows(&self.mask),
            scales: rows(&self.scales),
            values: self.values.part(first * unit..last * unit),
            offsets: self.offsets[range.start..=range.end].iter().map(|offset| offset - first as u64).collect(),
            ..self.clone()
        }
    }

    /// The same weights in memory; those of a mapped file are read from the file, not through the map.
    ///
    /// # Errors
    /// If the file cannot be read or has become shorter, or the memory cannot be had.
    pub(crate) fn to_memory(&self) -> Result<Self> {
        let [mask, values, scales] = [&self.mask, &self.values, &self.scales].map(Bytes::to_memory);
        Ok(BitmapTensor { mask: mask?, values: values?, scales: scales?, ..self.clone() })
    }

    /// See [`Tensor::release`].
    pub(crate) fn release(&self) {
        [&self.mask, &self.values, &self.scales].into_iter().for_each(Bytes::release);
    }
}

fn of(name: String, dtype: Dtype, shape: Vec<usize>, bytes: Cow<'_, [u8]>) -> Pending<'_> {
    let len = bytes.len();
    Pending { name, dtype, shape, len, bytes: Box::new(move || bytes.clone()) }
}

/// The values of an I64 tensor.
fn integers(bytes: &[u8]) -> Vec<i64> {
    bytes.as_chunks().0.iter().map(|&b| i64::from_le_bytes(b)).collect()
}
