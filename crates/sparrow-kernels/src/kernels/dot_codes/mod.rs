//! `dot_codes`: the products of some rows of codes with some activations in 16-bit integers.
//!
//! out\[t, j\] = s_x\[t\] · Σ_g (f_g · Σᵢ cᵢ · q\[t, i\] + o_g · Σᵢ q\[t, i\]), g a group of row(j) with its factor and
//! offset. Sums inside groups are exact; between groups they are `f32`, so the rounding error of one result is at most
//! (groups + 32) · 2⁻²⁴ · Σᵢ (|W| + |e·f|)·|x|, and the rounding of x, 2⁻¹⁶ · max |x| · Σᵢ |W| at most; e is what a tier adds to
//! codes that are multiplied unsigned, and takes off again by the offset. Used as [`dot_int8`](super::dot_int8) is.

pub(crate) mod scalar;

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;

use crate::rows::{Int16Rows, Rows};

/// The arguments of a `dot_codes` kernel.
#[derive(Clone, Copy)]
pub(crate) struct DotCodes {
    /// Of the kernel's type.
    pub rows: Rows,
    /// `[m, cols]`.
    pub x: Int16Rows,
    pub m: usize,
    /// `[m, count]`, `out_stride` elements from one row to the next; overwritten.
    pub out: *mut f32,
    pub out_stride: usize,
}

/// A `dot_codes` kernel.
///
/// # Safety
/// The CPU must have the kernel's features, and every pointer must be valid for the shape it is documented with.
pub(crate) type DotCodesFn = unsafe fn(&DotCodes);
