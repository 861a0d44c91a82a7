//! Rows of a stored matrix.

use crate::dtype::Matrix;

/// Some rows of a stored matrix, whole: row `j` of the set starts at `base + stride * (ids ? ids[j] : j)`.
#[derive(Clone, Copy)]
pub(crate) struct Rows {
    pub base: *const u8,
    /// Bytes from one row of the matrix to the next.
    pub stride: usize,
    /// Null: the first `count` rows.
    pub ids: *const u32,
    pub count: usize,
    /// Elements of a row.
    pub cols: usize,
}

impl Rows {
    /// Rows `ids` of a matrix, or all.
    ///
    /// The ids must be rows of it.
    pub(crate) fn of(matrix: Matrix, ids: Option<&[u32]>) -> Rows {
        Rows {
            base: matrix.bytes().as_ptr(),
            stride: matrix.stride(),
            ids: ids.map_or(std::ptr::null(), <[u32]>::as_ptr),
            count: ids.map_or(matrix.rows(), <[u32]>::len),
            cols: matrix.cols(),
        }
    }

    /// The address of row `j` of the set.
    ///
    /// # Safety
    /// `j < count`, and the set must describe readable memory.
    #[inline(always)]
    pub(crate) unsafe fn row(&self, j: usize) -> *const u8 {
        // SAFETY: the caller guarantees that j is in the set and that the row lies in the matrix.
        unsafe { self.base.add(self.stride * self.id(j)) }
    }

    /// The row number of row `j` of the set.
    ///
    /// # Safety
    /// `j < count`.
    #[inline(always)]
    pub(crate) unsafe fn id(&self, j: usize) -> usize {
        if self.ids.is_null() {
            j
        } else {
            // SAFETY: ids has count entries and the caller guarantees j < count.
            unsafe { *self.ids.add(j) as usize }
        }
    }
}
