//! `expand`: rows of a [`Bitmap`], or parts of them, as dense rows.
//!
//! Where no kernel multiplies a bitmap as it is, rows are expanded into scratch that stays in a cache and multiplied by the
//! kernels of dense rows: the results are those of the dense matrix, bit for bit.

pub(crate) mod scalar;

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;

use super::axpy::COLUMN_STEP;
use super::row_set::RowSet;
use crate::Compute;
use crate::dtype::bitmap::{mask_bits, scale_row_bytes, unit_bytes};
use crate::dtype::quantized::MIDDLE;
use crate::dtype::{Bitmap, DType, Matrix};
use crate::shared_mut::SharedMut;
use std::ops::Range;

/// Multiply-adds that expanding one element is worth.
const COST: usize = 2;
/// Two int4 elements of value 0.
const ZEROS: u8 = MIDDLE | MIDDLE << 4;

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
/// The CPU must have the kernel's features; mask and `to` must be valid for `len` elements, and `values` to `end` readable and
/// hold those whose bits are set.
pub(crate) type ExpandFn = unsafe fn(&Expand) -> *const u8;

/// The kernel of a type, in the tables: that of its number of bits, 4, 8, 16 or 32.
pub(crate) const fn kernel(dtype: DType) -> usize {
    match dtype {
        DType::F32 => 3,
        DType::F16 | DType::BF16 => 2,
        DType::I8 => 1,
        DType::I4G32 | DType::I4G32Z | DType::I4G128 | DType::I4G128Z => 0,
    }
}

impl Compute {
    /// Elements `columns` of a row, from a multiple of [`COLUMN_STEP`] on, as a dense row of that many elements. Those that are
    /// stored begin at `position`, counted as offsets are; returns where the next begin, if `columns` ends the row or is a
    /// multiple of 32 long.
    ///
    /// # Panics
    /// If the row or a column is not there, or `to` is not such a row.
    pub(crate) fn expand_part(
        &self,
        w: &Bitmap,
        row: usize,
        columns: Range<usize>,
        position: usize,
        to: &mut [u8],
    ) -> usize {
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
        // SAFETY: the table holds only kernels that this CPU can run; the mask has these columns, the codes their length, and the
        // values of a bitmap are those of its mask.
        let end = unsafe { (self.kernels.expand[kernel(dtype)])(&args) };
        position + (end.addr() - from.as_ptr().addr()) / unit
    }

    /// Rows `rows` as a dense matrix in `to`, of which the start is used.
    ///
    /// # Panics
    /// If a row is not there, or `to` is too short.
    pub(crate) fn expand_rows<'b>(&self, w: &Bitmap, rows: RowSet, to: &'b mut [u8]) -> Matrix<'b> {
        let (count, bytes) = (rows.len(), w.dtype().row_bytes(w.cols()));
        let to = &mut to[..count * bytes];
        for (i, row) in rows.iter().enumerate() {
            let position = w.parts().offsets[row] as usize;
            self.expand_part(w, row, 0..w.cols(), position, &mut to[i * bytes..(i + 1) * bytes]);
        }
        Matrix::new(w.dtype(), count, w.cols(), to)
    }
}

/// out ← the rows of `w`, dense: what was packed, bit for bit. Parallel.
///
/// # Panics
/// If `out.len()` is not `w.rows() * w.dtype().row_bytes(w.cols())`.
pub fn unpack(compute: &Compute, w: Bitmap, out: &mut [u8]) {
    let bytes = w.dtype().row_bytes(w.cols());
    assert_eq!(out.len(), w.rows() * bytes, "unpack: out.len() is not rows * {}.row_bytes(cols)", w.dtype());
    let work = w.rows() * w.cols() * COST;
    let rows = w.rows().div_ceil(compute.tasks(w.rows(), work)).max(1);
    let out = SharedMut::new(out);
    compute.parallel(w.rows().div_ceil(rows), work, &|task| {
        let range = task * rows..w.rows().min((task + 1) * rows);
        // SAFETY: tasks have disjoint rows.
        let to = unsafe { out.part(range.start * bytes..range.end * bytes) };
        compute.expand_rows(&w, RowSet::Range(range), to);
    });
}
