//! The matrix of a linear layer, stored whole or as a bitmap.

use std::ops::Range;

use sparrow_kernels::{BitmapParts, Compute, DType, Stored, decode};

use super::{BitmapTensor, MappedFile, Tensor};
use crate::error::Result;

/// A matrix of weights, `[rows, cols]`; cheap to clone.
#[derive(Debug, Clone)]
pub enum Weight {
    /// Every element stored.
    Dense(Tensor),
    /// The elements that are not zero, and a bitmap of where they belong.
    Bitmap(BitmapTensor),
}

impl From<Tensor> for Weight {
    fn from(tensor: Tensor) -> Self {
        Weight::Dense(tensor)
    }
}

impl From<BitmapTensor> for Weight {
    fn from(tensor: BitmapTensor) -> Self {
        Weight::Bitmap(tensor)
    }
}

/// Calls the same method of either.
macro_rules! either {
    ($weight:expr, $tensor:ident => $call:expr) => {
        match $weight {
            Weight::Dense($tensor) => $call,
            Weight::Bitmap($tensor) => $call,
        }
    };
}

impl Weight {
    /// The view that kernels take.
    pub fn stored(&self) -> Stored<'_> {
        match self {
            Weight::Dense(tensor) => tensor.matrix().into(),
            Weight::Bitmap(tensor) => tensor.bitmap().into(),
        }
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        either!(self, tensor => tensor.dtype())
    }

    /// Rows: outputs of a linear layer, tokens of an embedding.
    pub fn rows(&self) -> usize {
        either!(self, tensor => tensor.rows())
    }

    /// Columns.
    pub fn cols(&self) -> usize {
        either!(self, tensor => tensor.cols())
    }

    /// Bytes that reading all of it takes.
    pub fn byte_len(&self) -> u64 {
        match self {
            Weight::Dense(tensor) => tensor.bytes().len() as u64,
            Weight::Bitmap(tensor) => tensor.byte_len(),
        }
    }

    /// Whether both are the same bytes.
    pub fn shares_bytes(&self, other: &Weight) -> bool {
        let start = |weight: &Weight| match weight {
            Weight::Dense(tensor) => tensor.bytes().as_ptr(),
            Weight::Bitmap(tensor) => tensor.values().as_ptr(),
        };
        start(self) == start(other)
    }

    /// The tensor, where every element is stored.
    pub fn dense(&self) -> Option<&Tensor> {
        match self {
            Weight::Dense(tensor) => Some(tensor),
            Weight::Bitmap(_) => None,
        }
    }

    /// The rows `range`, sharing the bytes.
    ///
    /// # Panics
    /// If the range is out of bounds.
    pub fn row_range(&self, range: Range<usize>) -> Weight {
        either!(self, tensor => tensor.row_range(range).into())
    }

    /// Elements `[range.len(), cols]` of the rows `range` as `f32`.
    ///
    /// # Panics
    /// If the range is out of bounds, or `out` has another length.
    pub fn decode(&self, range: Range<usize>, out: &mut [f32]) {
        let cols = self.cols();
        assert_eq!(out.len(), range.len() * cols, "decode: out.len() is not rows * cols");
        match self {
            _ if out.is_empty() => {}
            Weight::Dense(tensor) => {
                for (row, out) in range.zip(out.chunks_exact_mut(cols)) {
                    decode(tensor.dtype(), tensor.matrix().row(row), out);
                }
            }
            Weight::Bitmap(tensor) => {
                let bitmap = tensor.bitmap();
                range.zip(out.chunks_exact_mut(cols)).for_each(|(row, out)| bitmap.decode_row(row, out));
            }
        }
    }

    /// The same weights in memory; those of a mapped file are read from the file, not through the map.
    ///
    /// # Errors
    /// If the file cannot be read or has become shorter, or the memory cannot be had.
    pub fn to_memory(&self) -> Result<Weight> {
        Ok(either!(self, tensor => tensor.to_memory()?.into()))
    }

    /// What `change` makes of the matrix with every element stored, stored as this one is.
    ///
    /// # Errors
    /// Those of `change`, or if the memory cannot be had.
    fn map(&self, compute: &Compute, change: impl FnOnce(&Tensor) -> Result<Tensor>) -> Result<Weight> {
        match self {
            Weight::Dense(tensor) => Ok(change(tensor)?.into()),
            Weight::Bitmap(tensor) => {
                let changed = change(&tensor.unpack(compute)?)?;
                match BitmapParts::supports(changed.dtype()) {
                    true => Ok(BitmapTensor::pack(&changed, compute)?.into()),
                    false => Ok(changed.into()),
                }
            }
        }
    }

    /// The same weights in the quantised type `dtype`, in memory.
    ///
    /// # Errors
    /// If the memory cannot be had.
    pub fn quantized(&self, dtype: DType, compute: &Compute) -> Result<Weight> {
        self.map(compute, |tensor| tensor.converted(dtype, compute))
    }

    /// The transposed matrix, in memory.
    ///
    /// # Errors
    /// If the memory cannot be had.
    pub fn transposed(&self, compute: &Compute) -> Result<Weight> {
        self.map(compute, |tensor| tensor.transposed(compute))
    }

    /// See [`Tensor::release`].
    pub fn release(&self) {
        either!(self, tensor => tensor.release());
    }

    /// The file that its values are mapped from.
    fn file(&self) -> Option<&MappedFile> {
        let file = match self {
            Weight::Dense(tensor) => tensor.file(),
            Weight::Bitmap(tensor) => tensor.values().file(),
        };
        file.map(|(file, _)| &**file)
    }

    /// Bytes that are mapped from a file.
    pub fn mapped_bytes(&self) -> u64 {
        self.file().map_or(0, |_| self.byte_len())
    }

    /// See [`MappedFile::evict`].
    pub fn evict(&self) {
        if let Some(file) = self.file() {
            file.evict();
        }
    }
}
