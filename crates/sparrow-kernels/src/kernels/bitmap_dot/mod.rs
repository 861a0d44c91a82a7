//! `bitmap_dot`: the products of some rows of a [`Bitmap`](crate::Bitmap) with a few activations, expanded in
//! registers.
//!
//! out\[t, j\] = Σᵢ W\[row(j), i\] · x\[t, i\], as [`dot`](super::dot), and for int8 as [`dot_int8`](super::dot_int8),
//! with the same bits. Where a tier has no such kernel, rows are [expanded](super::expand) in memory. The stored
//! elements of the next columns lie where the number of bits so far says; several rows at once hide the latency of
//! counting. Rounding error as that of `dot`.

// Without vector tiers nothing uses this.
#![cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]

#[cfg(target_arch = "x86_64")]
pub(crate) mod amx;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512_int8;
#[cfg(target_arch = "x86_64")]
pub(crate) mod tiles;

use super::dot::{RowsDot, RowsDotFn, RowsDotKernel};
use crate::rows::{BitmapRows, FEW, Int16Rows};

/// The arguments of a `bitmap_dot` kernel.
pub(crate) type BitmapDot = RowsDot<BitmapRows>;

/// A `bitmap_dot` kernel.
///
/// # Safety
/// See [`RowsDotFn`].
pub(crate) type BitmapDotFn = RowsDotFn<BitmapRows>;

/// A `bitmap_dot` kernel and how many activations it is for.
pub(crate) type BitmapDotKernel = RowsDotKernel<BitmapRows>;

impl BitmapDotKernel {
    /// A kernel that multiplies in registers.
    pub(crate) const fn in_registers(run: BitmapDotFn) -> Self {
        Self { run, tokens: FEW, few: FEW_IN_REGISTERS }
    }
}

/// Up to this many activations rows are expanded in registers, for [`FEW`] activations at a time: measured, twice that
/// is still faster than expanding for the blocked product.
pub(crate) const FEW_IN_REGISTERS: usize = 2 * FEW;

/// The arguments of a `bitmap_dot_int8` kernel.
#[derive(Clone, Copy)]
pub(crate) struct BitmapDotInt8 {
    /// Of int8.
    pub rows: BitmapRows,
    /// `[m, cols]`.
    pub x: Int16Rows,
    /// 1 to 8.
    pub m: usize,
    /// As in [`RowsDot`].
    pub out: *mut f32,
    pub out_stride: usize,
}

/// A `bitmap_dot_int8` kernel.
///
/// # Safety
/// As [`BitmapDotFn`].
pub(crate) type BitmapDotInt8Fn = unsafe fn(&BitmapDotInt8);
