//! Weights, dense or as a bitmap.

use super::bitmap::Bitmap;
use super::matrix::Matrix;
use super::types::DType;
use std::ops::Range;

/// Borrowed weights in either form.
#[derive(Clone, Copy, Debug)]
pub enum Stored<'a> {
    /// Every element.
    Dense(Matrix<'a>),
    /// The elements that are not zero.
    Bitmap(Bitmap<'a>),
}

impl<'a> From<Matrix<'a>> for Stored<'a> {
    fn from(matrix: Matrix<'a>) -> Self {
        Stored::Dense(matrix)
    }
}

impl<'a> From<Bitmap<'a>> for Stored<'a> {
    fn from(bitmap: Bitmap<'a>) -> Self {
        Stored::Bitmap(bitmap)
    }
}

impl<'a> Stored<'a> {
    /// Rows.
    pub fn rows(&self) -> usize {
        match self {
            Stored::Dense(w) => w.rows(),
            Stored::Bitmap(w) => w.rows(),
        }
    }

    /// Columns.
    pub fn cols(&self) -> usize {
        match self {
            Stored::Dense(w) => w.cols(),
            Stored::Bitmap(w) => w.cols(),
        }
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        match self {
            Stored::Dense(w) => w.dtype(),
            Stored::Bitmap(w) => w.dtype(),
        }
    }

    /// Bytes of all rows: what reading the weights once costs.
    pub fn size(&self) -> usize {
        match self {
            Stored::Dense(w) => w.rows() * w.row_bytes(),
            Stored::Bitmap(w) => w.bytes(),
        }
    }

    /// Rows `range`.
    ///
    /// # Panics
    /// If the range is reversed or ends past the last row.
    pub fn row_range(&self, range: Range<usize>) -> Stored<'a> {
        match self {
            Stored::Dense(w) => w.row_range(range).into(),
            Stored::Bitmap(w) => w.row_range(range).into(),
        }
    }

    /// The scale of a row of int8, 1 of other types.
    ///
    /// # Panics
    /// If `row` is not below [`rows`](Self::rows).
    pub(crate) fn int8_scale(&self, row: usize) -> f32 {
        match self {
            Stored::Dense(w) => w.int8_scale(row),
            Stored::Bitmap(w) => w.int8_scale(row),
        }
    }
}
