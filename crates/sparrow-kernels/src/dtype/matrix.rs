//! A borrowed matrix of weights.

use super::DType;
use super::quantized::MAX_INT8_COLS;
use std::fmt;
use std::ops::Range;

/// Borrowed weights `[rows, cols]`, row-major, little-endian; a row is `dtype.row_bytes(cols)` bytes.
///
/// The bytes may start at any address (they may be part of a mapped file): every kernel uses unaligned loads.
#[derive(Clone, Copy)]
pub struct Matrix<'a> {
    dtype: DType,
    rows: usize,
    cols: usize,
    bytes: &'a [u8],
}

impl<'a> Matrix<'a> {
    /// A view of `bytes` as `[rows, cols]`.
    ///
    /// # Panics
    /// If `bytes.len()` is not `rows * dtype.row_bytes(cols)`, or an int8 row has more than 2¹⁷ elements.
    pub fn new(dtype: DType, rows: usize, cols: usize, bytes: &'a [u8]) -> Self {
        let want = if cols < usize::MAX / 8 { rows.checked_mul(dtype.row_bytes(cols)) } else { None };
        assert!(
            dtype != DType::I8 || cols <= MAX_INT8_COLS,
            "Matrix::new: rows of {cols} int8 elements, at most {MAX_INT8_COLS} are allowed"
        );
        assert!(
            want == Some(bytes.len()),
            "Matrix::new: {} bytes for [{rows}, {cols}] of {dtype}, expected {want:?}",
            bytes.len()
        );
        Self { dtype, rows, cols, bytes }
    }

    /// Rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// All rows.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Bytes from one row to the next.
    pub fn row_bytes(&self) -> usize {
        self.dtype.row_bytes(self.cols)
    }

    /// The bytes of one row.
    ///
    /// # Panics
    /// If `row` is not below [`rows`](Self::rows).
    pub fn row(&self, row: usize) -> &'a [u8] {
        assert!(row < self.rows, "Matrix::row: row {row} of {} rows", self.rows);
        &self.bytes[row * self.row_bytes()..][..self.row_bytes()]
    }

    /// Rows `range` as a matrix.
    ///
    /// # Panics
    /// If the range is reversed or ends past the last row.
    pub fn row_range(&self, range: Range<usize>) -> Matrix<'a> {
        assert!(
            range.start <= range.end && range.end <= self.rows,
            "Matrix::row_range: {range:?} of {} rows",
            self.rows
        );
        let row_bytes = self.row_bytes();
        Matrix { rows: range.len(), bytes: &self.bytes[range.start * row_bytes..range.end * row_bytes], ..*self }
    }
}

impl fmt::Debug for Matrix<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Matrix([{}, {}] {})", self.rows, self.cols, self.dtype)
    }
}
