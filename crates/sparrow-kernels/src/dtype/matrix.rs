//! A borrowed matrix of weights.

use super::layout::{MAX_INT8_COLS, int8_scale};
use super::types::DType;
use std::fmt;
use std::ops::Range;

/// Borrowed weights `[rows, cols]`, row-major, little-endian; a row is `dtype.row_bytes(cols)` bytes, and the next one
/// follows at once, or at a fixed distance ([`strided`](Self::strided)).
///
/// The bytes may start at any address (they may be part of a mapped file): every kernel uses unaligned loads.
#[derive(Clone, Copy)]
pub struct Matrix<'a> {
    dtype: DType,
    rows: usize,
    cols: usize,
    stride: usize,
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
        Self { dtype, rows, cols, stride: dtype.row_bytes(cols), bytes }
    }

    /// Rows that start every `stride` bytes of `bytes`: one kind of rows among records that hold several.
    ///
    /// # Panics
    /// If a row is longer than `stride`, `bytes` ends before the last row does, or as [`new`](Self::new).
    pub fn strided(dtype: DType, rows: usize, cols: usize, stride: usize, bytes: &'a [u8]) -> Self {
        let row_bytes = Self::new(dtype, 0, cols, &[]).row_bytes();
        let end = rows.checked_sub(1).map_or(Some(0), |last| last.checked_mul(stride)?.checked_add(row_bytes));
        assert!(
            row_bytes <= stride && end.is_some_and(|end| end <= bytes.len()),
            "Matrix::strided: {} bytes for [{rows}, {cols}] of {dtype} every {stride} bytes",
            bytes.len()
        );
        Self { dtype, rows, cols, stride, bytes: &bytes[..end.unwrap_or(0)] }
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

    /// All rows, with what lies between them.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Bytes from one row to the next.
    pub fn stride(&self) -> usize {
        self.stride
    }

    /// Bytes of a row.
    pub fn row_bytes(&self) -> usize {
        self.dtype.row_bytes(self.cols)
    }

    /// The bytes of one row.
    ///
    /// # Panics
    /// If `row` is not below [`rows`](Self::rows).
    pub fn row(&self, row: usize) -> &'a [u8] {
        assert!(row < self.rows, "Matrix::row: row {row} of {} rows", self.rows);
        &self.bytes[row * self.stride..][..self.row_bytes()]
    }

    /// The scale of a row of int8, 1 of other types.
    ///
    /// # Panics
    /// As [`row`](Self::row).
    pub(crate) fn int8_scale(&self, row: usize) -> f32 {
        let row = self.row(row);
        // SAFETY: the row is readable.
        if self.dtype == DType::I8 { unsafe { int8_scale(row.as_ptr(), self.cols) } } else { 1.0 }
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
        let (start, len) = (range.start * self.stride, range.len() * self.stride);
        // The last row of all has nothing after it.
        let bytes = &self.bytes[start.min(self.bytes.len())..self.bytes.len().min(start + len)];
        Matrix { rows: range.len(), bytes, ..*self }
    }
}

impl fmt::Debug for Matrix<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Matrix([{}, {}] {})", self.rows, self.cols, self.dtype)
    }
}
