//! Activations in int8.

use crate::parallel::AlignedBuffer;

/// A row of quantised activations is padded with zeros to a multiple of this, one vector of the widest tier, and one
/// more holds its sum (`i32`) and its scale (`f32`).
const STEP: usize = 64;

/// Bytes of a row of `k` codes with their padding, and of the whole row.
pub(crate) const fn row_bytes(k: usize) -> [usize; 2] {
    let padded = k.next_multiple_of(STEP);
    [padded, padded + STEP]
}

/// Activations `[m, k]` quantised to int8, one scale per row.
pub(crate) struct Int8Activations<'a> {
    bytes: AlignedBuffer<'a>,
    row_bytes: usize,
}

impl<'a> Int8Activations<'a> {
    /// Rows of `row_bytes`, as [`row_bytes`] gives them for k, that are filled already: codes, padding, sum and scale.
    pub(crate) fn of(bytes: AlignedBuffer<'a>, row_bytes: usize) -> Self {
        Self { bytes, row_bytes }
    }

    /// The rows for a kernel.
    pub(crate) fn rows(&self) -> Int8Rows {
        Int8Rows { base: self.bytes.as_ptr(), row_bytes: self.row_bytes }
    }
}

/// Rows of [`Int8Activations`].
#[derive(Clone, Copy)]
pub(crate) struct Int8Rows {
    base: *const u8,
    row_bytes: usize,
}

impl Int8Rows {
    /// The rows from row `t`, which must exist, on.
    pub(crate) fn from(self, t: usize) -> Int8Rows {
        Int8Rows { base: self.base.wrapping_add(t * self.row_bytes), ..self }
    }

    /// The codes of row `t`.
    ///
    /// # Safety
    /// The row must exist, as for the methods below.
    #[inline(always)]
    pub(crate) unsafe fn codes(&self, t: usize) -> *const i8 {
        // SAFETY: the caller guarantees the row.
        unsafe { self.base.add(t * self.row_bytes).cast() }
    }

    /// The sum of the codes of row `t`.
    ///
    /// # Safety
    /// As [`codes`](Self::codes).
    #[inline(always)]
    pub(crate) unsafe fn sum(&self, t: usize) -> i32 {
        // SAFETY: the last STEP bytes of a row, aligned like the row, start with it.
        unsafe { self.base.add((t + 1) * self.row_bytes - STEP).cast::<i32>().read() }
    }

    /// The scale of row `t`.
    ///
    /// # Safety
    /// As [`codes`](Self::codes).
    #[inline(always)]
    pub(crate) unsafe fn scale(&self, t: usize) -> f32 {
        // SAFETY: it follows the sum.
        unsafe { self.base.add((t + 1) * self.row_bytes - STEP + 4).cast::<f32>().read() }
    }
}
