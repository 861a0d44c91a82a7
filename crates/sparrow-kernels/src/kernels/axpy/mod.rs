//! `axpy_rows`: adds a weighted sum of some rows of a stored matrix to an accumulator.
//!
//! out\[t, c\] += Σⱼ a\[t, j\] · W\[row(j), c\], the inner loop of [`linear_in_out`](crate::Compute::linear_in_out),
//! and of the down half of [`sparse_mlp`](crate::Compute::sparse_mlp). Rows are added in order, one by one or in groups
//! of eight, so the rounding error of one result is at most (count + 1) · 2⁻²⁴ · (|out| + Σⱼ |a·W|); tiers with vectors round
//! the coefficients of codes too, see [`avx2_codes`] and [`avx512_codes`].

pub(crate) mod scalar;

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2_codes;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512_codes;

use crate::rows::Rows;

/// Activations whose coefficients are gathered at once.
#[cfg(target_arch = "x86_64")]
const TILE: usize = 8;

/// The arguments of an `axpy_rows` kernel.
#[derive(Clone, Copy)]
pub(crate) struct AxpyRows {
    pub rows: Rows,
    /// Elements of each row to add: `cols` from `start` on, a multiple of [`COLUMN_STEP`](crate::rows::COLUMN_STEP).
    pub start: usize,
    pub cols: usize,
    /// `[m, count]`, or `[m, more]` with `columns`; `a_stride` elements from one row to the next.
    pub a: *const f32,
    pub a_stride: usize,
    /// The column of `a` for each row of the set; null: its place in the set.
    pub columns: *const u32,
    pub m: usize,
    /// `[m, cols]`, `out_stride` elements from one row to the next; added to.
    pub out: *mut f32,
    pub out_stride: usize,
}

impl AxpyRows {
    /// The coefficient of row `j` of the set for activation `t`.
    ///
    /// # Safety
    /// `j < count`, `t < m`, and the arguments must describe readable memory.
    #[inline(always)]
    pub(crate) unsafe fn coefficient(&self, t: usize, j: usize) -> f32 {
        // SAFETY: j and t are in range, as the caller guarantees.
        unsafe {
            let at = if self.columns.is_null() { j } else { *self.columns.add(j) as usize };
            *self.a.add(t * self.a_stride + at)
        }
    }
}

/// An `axpy_rows` kernel.
///
/// # Safety
/// The CPU must have the kernel's features, and every pointer must be valid for the shape it is documented with.
pub(crate) type AxpyRowsFn = unsafe fn(&AxpyRows);
