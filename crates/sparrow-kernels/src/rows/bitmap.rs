//! Rows of a bitmap.

// Without vector tiers nothing uses this.
#![cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]

use super::set::RowSet;
use crate::dtype::Bitmap;
use crate::dtype::bitmap::{mask_row_bytes, unit_bytes};
use std::ops::Range;

/// What a kernel may read from where stored elements begin: one vector.
const READ: usize = 64;

/// Some rows of a bitmap, of a type whose offsets count elements.
#[derive(Clone, Copy)]
pub(crate) struct BitmapRows {
    mask: *const u8,
    pub mask_bytes: usize,
    offsets: *const u64,
    values: *const u8,
    /// Bytes of values.
    len: usize,
    /// Of int8.
    scales: *const u8,
    unit: usize,
    /// Null: the first `count` rows.
    ids: *const u32,
    pub count: usize,
    pub cols: usize,
}

impl BitmapRows {
    pub(crate) fn of(w: &Bitmap, rows: &RowSet) -> Self {
        let (w, ids) = match rows {
            RowSet::Range(range) => (w.row_range(range.clone()), std::ptr::null()),
            RowSet::Ids(ids) => (*w, ids.as_ptr()),
        };
        let parts = w.parts();
        Self {
            mask: parts.mask.as_ptr(),
            mask_bytes: mask_row_bytes(w.cols()),
            offsets: parts.offsets.as_ptr(),
            values: parts.values.as_ptr(),
            len: parts.values.len(),
            scales: parts.scales.as_ptr(),
            unit: unit_bytes(w.dtype()),
            ids,
            count: rows.len(),
            cols: w.cols(),
        }
    }

    /// The row number of row `j` of the set.
    ///
    /// # Safety
    /// `j < count`, and the set must describe readable memory; so for all methods.
    #[inline(always)]
    unsafe fn id(&self, j: usize) -> usize {
        // SAFETY: ids has count entries.
        if self.ids.is_null() { j } else { unsafe { *self.ids.add(j) as usize } }
    }

    /// Where the mask and the stored elements of row `j` of the set begin.
    ///
    /// # Safety
    /// See [`id`](Self::id).
    #[inline(always)]
    pub(crate) unsafe fn row(&self, j: usize) -> (*const u8, *const u8) {
        // SAFETY: the row is one of the bitmap.
        unsafe {
            let id = self.id(j);
            (self.mask.add(id * self.mask_bytes), self.values.add(*self.offsets.add(id) as usize * self.unit))
        }
    }

    /// Whether less than a vector follows the last stored element of row `j` of the set.
    ///
    /// # Safety
    /// See [`id`](Self::id).
    #[inline(always)]
    pub(crate) unsafe fn near_end(&self, j: usize) -> bool {
        // SAFETY: the row is one of the bitmap.
        let end = unsafe { *self.offsets.add(self.id(j) + 1) as usize } * self.unit;
        self.len - end < READ
    }

    /// As [`near_end`](Self::near_end) of any of the rows `range`, as far as there are.
    ///
    /// # Safety
    /// See [`id`](Self::id).
    #[inline(always)]
    pub(crate) unsafe fn any_near_end(&self, range: Range<usize>) -> bool {
        // SAFETY: the contract is the caller's.
        (range.start..range.end.min(self.count)).any(|j| unsafe { self.near_end(j) })
    }

    /// The scale of row `j` of the set, of int8.
    ///
    /// # Safety
    /// See [`id`](Self::id).
    #[inline(always)]
    pub(crate) unsafe fn scale(&self, j: usize) -> f32 {
        // SAFETY: the row is one of the bitmap.
        unsafe { self.scales.cast::<f32>().add(self.id(j)).read_unaligned() }
    }
}
