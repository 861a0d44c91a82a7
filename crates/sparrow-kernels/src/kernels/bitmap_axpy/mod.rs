//! `bitmap_axpy`: adds a weighted sum of some rows of a [`Bitmap`](crate::Bitmap) to an accumulator, expanded in
//! registers.
//!
//! out\[t, c\] += Σⱼ a\[t, column(j)\] · W\[row(j), c\], as [`axpy`](super::axpy), with its rounding error. Where a
//! tier has no kernel, rows are [expanded](super::expand) in memory.

#[cfg(target_arch = "x86_64")]
pub(crate) mod amx;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;

use crate::rows::{BitmapRows, FEW};

/// The arguments of a `bitmap_axpy` kernel.
#[derive(Clone, Copy)]
pub(crate) struct BitmapAxpy {
    pub rows: BitmapRows,
    /// As in [`AxpyRows`](super::axpy::AxpyRows).
    pub a: *const f32,
    pub a_stride: usize,
    pub columns: *const u32,
    pub m: usize,
    /// Whether coefficients must not be rounded to bf16.
    pub exact: bool,
    /// `[m, cols]`, added to.
    pub out: *mut f32,
}

/// A `bitmap_axpy` kernel.
///
/// # Safety
/// The CPU must have the kernel's features, and every pointer must be valid for the shape it is documented with.
pub(crate) type BitmapAxpyFn = unsafe fn(&BitmapAxpy);

/// A `bitmap_axpy` kernel and how many activations it is for.
#[derive(Clone, Copy)]
pub(crate) struct BitmapAxpyKernel {
    pub run: BitmapAxpyFn,
    /// Up to this many it takes less time than expanding for the blocked product.
    pub few: usize,
}

impl BitmapAxpyKernel {
    /// A kernel that adds in registers.
    pub(crate) const fn in_registers(run: BitmapAxpyFn) -> Self {
        Self { run, few: FEW }
    }
}
