//! Rows of a bitmap, or parts of them, as dense rows: what a kernel is asked for, and how.

use super::set::RowSet;
use super::steps::COLUMN_STEP;
use crate::dtype::bitmap::{mask_bits, scale_row_bytes, unit_bytes};
use crate::dtype::layout::MIDDLE;
use crate::dtype::{Bitmap, DType, Matrix};
use std::ops::Range;

/// Two int4 elements of value 0.
pub(crate) const ZEROS: u8 = MIDDLE | MIDDLE << 4;

/// The arguments of an `expand` kernel: some elements of one row.
pub(crate) struct Expand {
    /// The mask from the first element on, which is the first of a byte, of int4 the first of a block.
    pub mask: *const u8,
    /// Elements; bits of the mask after them count for nothing.
    pub len: usize,
    /// Where the stored ones begin.
    pub values: *const u8,
    /// Where the array of values ends.
    pub end: *const u8,
    /// `len` elements, of int4 whole blocks, written; what is not stored becomes 0.
    pub to: *mut u8,
}

impl Expand {
    /// `8 * N` bits of the mask from element `i`, a multiple of 8, on; zeros past the last.
    ///
    /// # Safety
    /// `i < len`, and the mask must be readable.
    #[inline(always)]
    pub(crate) unsafe fn bits<const N: usize>(&self, i: usize) -> u64 {
        // SAFETY: the contract is the caller's.
        unsafe { mask_bits::<N>(self.mask, i, self.len) }
    }

    /// Whether less than `bytes` follow `values`, which lie in the array.
    #[inline(always)]
    pub(crate) fn near_end(&self, values: *const u8, bytes: usize) -> bool {
        self.end.addr() - values.addr() < bytes
    }
}

/// An `expand` kernel; returns where the stored elements that follow begin.
///
/// # Safety
/// The CPU must have the kernel's features; mask and `to` must be valid for `len` elements, and `values` to `end`
/// readable and hold those whose bits are set.
pub(crate) type ExpandFn = unsafe fn(&Expand) -> *const u8;

/// The kernel of a type, in the tables: that of its number of bits, 4, 8, 16 or 32.
const fn kernel(dtype: DType) -> usize {
    match dtype {
        DType::F32 => 3,
        DType::F16 | DType::BF16 => 2,
        DType::I8 => 1,
        // Of the rest only int4 has a bitmap form.
        _ => 0,
    }
}

/// The `expand` kernels of a tier.
#[derive(Clone, Copy)]
pub(crate) struct Expander(&'static [ExpandFn; 4]);

impl Expander {
    /// # Safety
    /// The CPU must have the kernels' features; they are those of 4, 8, 16 and 32 bits.
    pub(crate) unsafe fn new(kernels: &'static [ExpandFn; 4]) -> Self {
        Self(kernels)
    }

    /// Runs the kernel of a type.
    ///
    /// # Safety
    /// See [`ExpandFn`], but for the features; the elements must be of that type.
    pub(crate) unsafe fn run(self, dtype: DType, args: &Expand) -> *const u8 {
        // SAFETY: `new` was promised the features, the rest is the caller's contract.
        unsafe { (self.0[kernel(dtype)])(args) }
    }

    /// Elements `columns` of a row, from a multiple of [`COLUMN_STEP`] on, as a dense row of that many elements. Those
    /// that are stored begin at `position`, counted as offsets are; returns where the next begin, if `columns` ends the
    /// row or is a multiple of 32 long.
    ///
    /// # Panics
    /// If the row or a column is not there, or `to` is not such a row.
    pub(crate) fn part(self, w: &Bitmap, row: usize, columns: Range<usize>, position: usize, to: &mut [u8]) -> usize {
        let (dtype, len) = (w.dtype(), columns.len());
        assert!(
            columns.start.is_multiple_of(COLUMN_STEP) && columns.end <= w.cols() && to.len() == dtype.row_bytes(len)
        );
        let (values, unit) = (w.parts().values, unit_bytes(dtype));
        let from = &values[position * unit..];
        let (codes, scales) = to.split_at_mut(dtype.code_bytes(len));
        if dtype.is_quantized() {
            // A row of int8 has one scale, wherever a part begins.
            let skip = if dtype == DType::I8 { 0 } else { scale_row_bytes(dtype, columns.start) };
            scales.copy_from_slice(&w.scale_row(row)[skip..][..scales.len()]);
            // The padding, of which the kernel writes none or some.
            let (padding, zeros) = if dtype == DType::I8 { (len, 0) } else { (len / 32 * 16, ZEROS) };
            codes[padding..].fill(zeros);
        }
        if len == 0 {
            return position;
        }
        let args = Expand {
            mask: w.mask_row(row)[columns.start / 8..].as_ptr(),
            len,
            values: from.as_ptr(),
            end: from.as_ptr_range().end,
            to: codes.as_mut_ptr(),
        };
        // SAFETY: the mask has these columns, the codes their length, and the
        // values of a bitmap are those of its mask.
        let end = unsafe { self.run(dtype, &args) };
        position + (end.addr() - from.as_ptr().addr()) / unit
    }

    /// Rows `rows` as a dense matrix in `to`, of which the start is used.
    ///
    /// # Panics
    /// If a row is not there, or `to` is too short.
    pub(crate) fn rows<'b>(self, w: &Bitmap, rows: RowSet, to: &'b mut [u8]) -> Matrix<'b> {
        let (count, bytes) = (rows.len(), w.dtype().row_bytes(w.cols()));
        let to = &mut to[..count * bytes];
        for (i, row) in rows.iter().enumerate() {
            let position = w.parts().offsets[row] as usize;
            self.part(w, row, 0..w.cols(), position, &mut to[i * bytes..(i + 1) * bytes]);
        }
        Matrix::new(w.dtype(), count, w.cols(), to)
    }
}
