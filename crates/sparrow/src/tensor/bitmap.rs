//! A pruned matrix: the elements that are not zero, and a bitmap of where they belong. How files hold it is said in
//! `checkpoint/bitmap.rs`.

use std::ops::Range;
use std::sync::Arc;

use sparrow_kernels::{Bitmap, BitmapError, BitmapParts, Compute, DType, count_stored, fill_bitmap, unpack};

use super::{Bytes, Memory, Tensor};
use crate::error::Result;

/// A matrix of weights stored as a bitmap and the elements that are not zero; cheap to clone.
#[derive(Debug, Clone)]
pub struct BitmapTensor {
    dtype: DType,
    rows: usize,
    cols: usize,
    /// In memory, never mapped.
    mask: Bytes,
    values: Bytes,
    scales: Bytes,
    /// `rows + 1`; copied, since files may hold them at any address.
    offsets: Arc<[u64]>,
}

impl BitmapTensor {
    /// The matrix of these parts, of which `offsets` has `rows + 1` entries; offsets are compared with the counts of the mask's bits.
    ///
    /// # Errors
    /// If the parts contradict each other.
    ///
    /// # Panics
    /// If the mask is mapped: its bits are bounds, which must stay what they are after they were checked.
    pub fn from_parts(
        dtype: DType,
        [rows, cols]: [usize; 2],
        [mask, values, scales]: [Bytes; 3],
        offsets: Arc<[u64]>,
    ) -> std::result::Result<Self, BitmapError> {
        assert!(mask.file().is_none(), "the mask of a bitmap must be in memory");
        let tensor = BitmapTensor { dtype, rows, cols, mask, values, scales, offsets };
        tensor.parts().check().map(|()| tensor)
    }

    /// The elements of `tensor` that are not zero, in memory.
    ///
    /// # Errors
    /// If the memory cannot be had.
    pub fn pack(tensor: &Tensor, compute: &Compute) -> Result<Self> {
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
    pub fn unpack(&self, compute: &Compute) -> Result<Tensor> {
        Tensor::in_memory(self.dtype, self.rows, self.cols, |out| unpack(compute, self.bitmap(), out))
    }

    /// The view that kernels take.
    #[allow(unsafe_code)]
    pub fn bitmap(&self) -> Bitmap<'_> {
        // SAFETY: the parts were checked when they were read, or made by packing, and those that bounds depend on, the mask and the
        // offsets, are read-only memory of this process: what another one does to the file changes values at most.
        unsafe { Bitmap::new_unchecked(self.parts()) }
    }

    /// Its parts, as they are stored.
    pub fn parts(&self) -> BitmapParts<'_> {
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
    pub fn values(&self) -> &Bytes {
        &self.values
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
    pub fn to_memory(&self) -> Result<Self> {
        let [mask, values, scales] = [&self.mask, &self.values, &self.scales].map(Bytes::to_memory);
        Ok(BitmapTensor { mask: mask?, values: values?, scales: scales?, ..self.clone() })
    }

    /// See [`Tensor::release`].
    pub fn release(&self) {
        [&self.mask, &self.values, &self.scales].into_iter().for_each(Bytes::release);
    }
}
