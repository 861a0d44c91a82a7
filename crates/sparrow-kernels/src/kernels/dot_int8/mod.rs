//! `dot_int8`: the products of some int8 rows with some activations in 16-bit integers.
//!
//! out\[t, j\] = (Σᵢ W\[row(j), i\] · q\[t, i\]) · s_w\[row(j)\] · s_x\[t\], the sum exact, so that every tier gives the
//! same bits. With one scale per token eight bits of activations cost real models perplexity, outliers being what they
//! are; sixteen cost nothing that can be measured, and decoding, which waits for the weights, no time. Used by
//! [`linear`](crate::Compute::linear) and the gate and up halves of [`sparse_mlp`](crate::Compute::sparse_mlp).

pub(crate) mod scalar;

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;

use crate::dtype::layout::int8_scale;
use crate::rows::{Int16Rows, Rows};

/// Codes whose products, of pairs, fit an `i32` lane: 2 · 128 · 32512 each, two lanes' worth of pairs at least.
#[cfg(target_arch = "x86_64")]
pub(crate) const FLUSH: usize = 4096;

/// The arguments of a `dot_int8` kernel.
#[derive(Clone, Copy)]
pub(crate) struct DotInt8 {
    /// Of int8.
    pub rows: Rows,
    /// `[m, cols]`.
    pub x: Int16Rows,
    pub m: usize,
    /// `[m, count]`, `out_stride` elements from one row to the next; overwritten.
    pub out: *mut f32,
    pub out_stride: usize,
}

impl DotInt8 {
    /// Writes the result of row `j` of the set, at `row`, for activation `t`.
    ///
    /// # Safety
    /// Both must be in range.
    #[inline(always)]
    unsafe fn write(&self, t: usize, j: usize, row: *const u8, sum: i64) {
        // SAFETY: in range, as the caller guarantees.
        unsafe {
            let scale = int8_scale(row, self.rows.cols) * self.x.scale(t);
            *self.out.add(t * self.out_stride + j) = sum as f32 * scale;
        }
    }
}

/// A `dot_int8` kernel.
///
/// # Safety
/// The CPU must have the kernel's features, and every pointer must be valid for the shape it is documented with.
pub(crate) type DotInt8Fn = unsafe fn(&DotInt8);

/// Quantises one row, see [`rows::int16`](crate::rows::int16).
///
/// # Safety
/// The CPU must have the kernel's features.
pub(crate) type QuantizeFn = unsafe fn(&[f32], &mut [u8]);
