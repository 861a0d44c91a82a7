//! A matrix of weights whose elements are all stored.

use std::ops::Range;
use std::sync::Arc;

use sparrow_kernels::{Compute, DType, Matrix, quantize, transpose};

use super::storage::{Bytes, MappedFile, Memory};
use crate::error::Result;

/// A matrix of weights, `[rows, cols]` row-major; cheap to clone.
#[derive(Debug, Clone)]
pub struct Tensor {
    bytes: Bytes,
    dtype: DType,
    rows: usize,
    cols: usize,
}

impl Tensor {
    /// The part `range` of a mapped file.
    ///
    /// # Panics
    /// If the range is outside the file or has another length than the shape.
    pub fn mapped(file: &Arc<MappedFile>, range: Range<usize>, dtype: DType, rows: usize, cols: usize) -> Self {
        assert_eq!(range.len(), rows * dtype.row_bytes(cols), "tensor range has another length than its shape");
        Tensor { bytes: Bytes::mapped(file, range), dtype, rows, cols }
    }

    /// These bytes.
    ///
    /// # Panics
    /// If there are more or fewer than the shape has.
    pub fn of(bytes: Bytes, dtype: DType, rows: usize, cols: usize) -> Self {
        assert_eq!(bytes.len(), rows * dtype.row_bytes(cols), "tensor bytes are not as many as its shape has");
        Tensor { bytes, dtype, rows, cols }
    }

    /// A tensor in memory, page-aligned and on huge pages where the system has them, filled by `fill`.
    ///
    /// # Errors
    /// If the memory cannot be had.
    pub fn in_memory(dtype: DType, rows: usize, cols: usize, fill: impl FnOnce(&mut [u8])) -> Result<Self> {
        let mut memory = Memory::zeroed(rows * dtype.row_bytes(cols))?;
        fill(&mut memory);
        Ok(Tensor { bytes: Bytes::of(memory)?, dtype, rows, cols })
    }

    /// The same weights in memory; those of a mapped file are read from the file, not through the map.
    ///
    /// # Errors
    /// If the file cannot be read or has become shorter, or the memory cannot be had.
    pub fn to_memory(&self) -> Result<Tensor> {
        Ok(Tensor { bytes: self.bytes.to_memory()?, ..self.clone() })
    }

    /// The file it is mapped from, and which part of it.
    pub fn file(&self) -> Option<(&Arc<MappedFile>, Range<usize>)> {
        self.bytes.file()
    }

    /// The same weights in the type `dtype`, in memory.
    ///
    /// # Errors
    /// If the memory cannot be had.
    pub fn converted(&self, dtype: DType, compute: &Compute) -> Result<Tensor> {
        Tensor::in_memory(dtype, self.rows, self.cols, |out| quantize(compute, self.matrix(), dtype, out))
    }

    /// The transposed matrix, in memory: of the same type if elements stand alone, otherwise of Q8_0, whose rounding is next to
    /// nothing beside what theirs was.
    ///
    /// # Errors
    /// If the memory cannot be had.
    pub fn transposed(&self, compute: &Compute) -> Result<Tensor> {
        if self.dtype.is_quantized() {
            let in_floats = self.converted(DType::F32, compute)?;
            return in_floats.transposed(compute)?.converted(DType::Q8_0, compute);
        }
        Tensor::in_memory(self.dtype, self.cols, self.rows, |out| transpose(compute, self.matrix(), out))
    }

    /// The view that kernels take.
    pub fn matrix(&self) -> Matrix<'_> {
        Matrix::new(self.dtype, self.rows, self.cols, self.bytes())
    }

    /// The rows `range`, sharing the bytes.
    ///
    /// # Panics
    /// If the range is out of bounds.
    pub fn row_range(&self, range: Range<usize>) -> Tensor {
        assert!(range.start <= range.end && range.end <= self.rows, "row range out of bounds");
        let row = self.dtype.row_bytes(self.cols);
        Tensor { bytes: self.bytes.part(range.start * row..range.end * row), rows: range.len(), ..self.clone() }
    }

    /// Row-major little-endian bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// Rows: outputs of a linear layer, tokens of an embedding.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Lets the system take the pages of a mapped tensor out of this process's resident memory; they come back from
    /// the page cache when touched again. Used after a tensor was copied into another layout.
    pub fn release(&self) {
        self.bytes.release();
    }
}
