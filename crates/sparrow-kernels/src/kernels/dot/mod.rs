//! `dot_rows`: the products of some rows of a stored matrix with some activations.
//!
//! out\[t, j\] = Σᵢ W\[row(j), i\] · x\[t, i\], the inner loop of [`linear`](crate::Compute::linear) and of the gate
//! and up halves of [`sparse_mlp`](crate::Compute::sparse_mlp), for weights of floats (see [`dot_int8`](super::dot_int8)
//! and [`dot_codes`](super::dot_codes) for others). Every tier keeps one vector of partial sums per (t, j), so the rounding error of one
//! result is at most (K ÷ lanes + lanes) · 2⁻²⁴ · Σᵢ |W·x|.

mod rearranged;
pub(crate) mod scalar;

#[cfg(target_arch = "x86_64")]
pub(crate) mod amx;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;
#[cfg(target_arch = "x86_64")]
pub(crate) mod tiles;

use crate::dtype::{DType, TYPES};
use crate::rows::{Rows, STEP};

/// The arguments of a `dot_rows` kernel.
#[derive(Clone, Copy)]
pub(crate) struct DotRows {
    pub rows: Rows,
    /// `[m, cols]`, `x_stride` elements from one row to the next.
    pub x: *const f32,
    pub x_stride: usize,
    pub m: usize,
    /// `[m, count]`, `out_stride` elements from one row to the next; overwritten.
    pub out: *mut f32,
    pub out_stride: usize,
}

/// A `dot_rows` kernel.
///
/// # Safety
/// The CPU must have the kernel's features, and every pointer must be valid for the shape it is documented with.
pub(crate) type DotRowsFn = unsafe fn(&DotRows);

/// The arguments of a kernel that rearranges its activations.
#[derive(Clone, Copy)]
pub(crate) struct RowsDot<R> {
    pub rows: R,
    /// `[m, cols]`.
    pub x: *const f32,
    /// 1 to the most of the kernel.
    pub m: usize,
    /// [`arranged_bytes`] from the start of a cache line on, for x as the kernel likes it.
    pub arranged: *mut u8,
    /// `[m, count]`, `out_stride` elements from one row to the next; overwritten.
    pub out: *mut f32,
    pub out_stride: usize,
}

/// A kernel that rearranges its activations.
///
/// # Safety
/// The CPU must have the kernel's features, and every pointer must be valid for the shape it is documented with.
pub(crate) type RowsDotFn<R> = unsafe fn(&RowsDot<R>);

/// Such a kernel and how many activations it is for.
#[derive(Clone, Copy)]
pub(crate) struct RowsDotKernel<R> {
    pub run: RowsDotFn<R>,
    /// The most of one call.
    pub tokens: usize,
    /// Up to this many, in several calls, it takes less time than the blocked product.
    pub few: usize,
}

/// Kernels for rows of `f32`, `f16` and bf16 that round no activations.
// Without vector tiers nothing uses this.
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
pub(crate) const fn many(
    f32: RowsDotFn<Rows>,
    f16: RowsDotFn<Rows>,
    bf16: RowsDotFn<Rows>,
) -> [Option<RowsDotKernel<Rows>>; TYPES] {
    let mut kernels = [None; TYPES];
    kernels[DType::F32 as usize] = Some(RowsDotKernel::exact(f32, 24));
    kernels[DType::F16 as usize] = Some(RowsDotKernel::exact(f16, 24));
    kernels[DType::BF16 as usize] = Some(RowsDotKernel::exact(bf16, 32));
    kernels
}

impl RowsDotKernel<Rows> {
    /// A kernel that rounds no activations, for up to `few`.
    pub(crate) const fn exact(run: RowsDotFn<Rows>, few: usize) -> Self {
        Self { run, tokens: 32, few }
    }
}

/// Bytes for `m` activations of `cols` elements as a kernel likes them: `f32`, or columns of bf16 tiles.
pub(crate) const fn arranged_bytes(m: usize, cols: usize) -> usize {
    let tokens = if m > 16 { m } else { 16 };
    tokens * cols.next_multiple_of(STEP) * size_of::<f32>()
}
