//! `dot_int8`: the products of some int8 rows with some activations that are quantised to int8 too.
//!
//! out\[t, j\] = (Σᵢ W\[row(j), i\] · q\[t, i\]) · s_w\[row(j)\] · s_x\[t\], the sum exact in `i32`, so that every tier gives the same bits. Used
//! by [`linear`](super::linear) and the gate and up halves of [`sparse_mlp`](super::sparse_mlp).

pub(crate) mod scalar;

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;

use super::dot::Rows;
use crate::Compute;
use crate::dtype::quantized::int8_scale;
use crate::scratch::AlignedBuffer;
use crate::shared_mut::SharedMut;

/// A row of quantised activations is padded with zeros to a multiple of this, one vector of the widest tier, and one more
/// holds its sum (`i32`) and its scale (`f32`).
const STEP: usize = 64;

/// Activations `[m, k]` quantised to int8, one scale per row.
pub(crate) struct Int8Activations<'a> {
    bytes: AlignedBuffer<'a>,
    row_bytes: usize,
}

impl Int8Activations<'_> {
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

impl Compute {
    /// The rows of x `[m, k]`, each quantised with the scale max |x| / 127, to nearest, ties to even. A row with NaN or infinity has
    /// the scale NaN.
    pub(crate) fn quantize_activations(&self, x: &[f32], m: usize) -> Int8Activations<'_> {
        let k = x.len() / m;
        let padded = k.next_multiple_of(STEP);
        let row_bytes = padded + STEP;
        let mut bytes = self.scratch.take_aligned(m * row_bytes);
        let rows = SharedMut::new(&mut bytes[..]);
        self.parallel(m, 4 * x.len(), &|t| {
            // SAFETY: each task has its own row.
            let row = unsafe { rows.part(t * row_bytes..(t + 1) * row_bytes) };
            let (codes, stats) = row.split_at_mut(padded);
            // SAFETY: the table holds only kernels that this CPU can run.
            let (scale, sum) = unsafe { (self.kernels.quantize)(&x[t * k..(t + 1) * k], codes) };
            stats[..4].copy_from_slice(&sum.to_ne_bytes());
            stats[4..8].copy_from_slice(&scale.to_ne_bytes());
        });
        Int8Activations { bytes, row_bytes }
    }
}

/// The arguments of a `dot_int8` kernel.
#[derive(Clone, Copy)]
pub(crate) struct DotInt8 {
    /// Of int8.
    pub rows: Rows,
    /// `[m, cols]`.
    pub x: Int8Rows,
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
    unsafe fn write(&self, t: usize, j: usize, row: *const u8, sum: i32) {
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

/// Quantises one row, see [`quantize_int8`](crate::dtype::quantized::quantize_int8).
///
/// # Safety
/// The CPU must have the kernel's features.
pub(crate) type QuantizeFn = unsafe fn(&[f32], &mut [u8]) -> (f32, i32);
