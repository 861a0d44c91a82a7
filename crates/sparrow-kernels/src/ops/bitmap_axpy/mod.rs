//! `bitmap_axpy`: adds a weighted sum of some rows of a [`Bitmap`](crate::Bitmap) to an accumulator, expanded in registers.
//!
//! out\[t, c\] += Σⱼ a\[t, column(j)\] · W\[row(j), c\], as [`axpy`](super::axpy), with its rounding error. Where a tier has no kernel, rows are
//! [expanded](super::expand) in memory.

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;

use super::bitmap_dot::BitmapRows;

/// The arguments of a `bitmap_axpy` kernel.
#[derive(Clone, Copy)]
pub(crate) struct BitmapAxpy {
    pub rows: BitmapRows,
    /// As in [`AxpyRows`](super::axpy::AxpyRows).
    pub a: *const f32,
    pub a_stride: usize,
    pub columns: *const u32,
    pub m: usize,
    /// `[m, cols]`, added to.
    pub out: *mut f32,
}

/// A `bitmap_axpy` kernel.
///
/// # Safety
/// The CPU must have the kernel's features, and every pointer must be valid for the shape it is documented with.
pub(crate) type BitmapAxpyFn = unsafe fn(&BitmapAxpy);
