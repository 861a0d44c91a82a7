//! Vectors of `f32` of one tier, for kernels that are written once for all vector tiers.
//!
//! The methods are inlined only into functions with the tier's features, so generic code is `#[inline(always)]`, free
//! of closures, and called from a function with these features.

use crate::dtype::{BF16, code_size};

/// Vectors of one tier.
pub(crate) trait Vector {
    /// One vector.
    type V: Copy;
    /// Values of one vector.
    const LANES: usize;

    /// # Safety
    /// The CPU must have the tier's features; so for all methods.
    unsafe fn zero() -> Self::V;
    /// # Safety
    /// See [`zero`](Self::zero).
    unsafe fn splat(value: f32) -> Self::V;
    /// # Safety
    /// See [`zero`](Self::zero); a vector must be readable at `p`, at any alignment.
    unsafe fn load(p: *const f32) -> Self::V;
    /// # Safety
    /// See [`zero`](Self::zero); a vector must be writable at `p`, at any alignment.
    unsafe fn store(p: *mut f32, v: Self::V);
    /// a · b + c.
    ///
    /// # Safety
    /// See [`zero`](Self::zero).
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    /// The sums of four vectors, all in the same order.
    ///
    /// # Safety
    /// See [`zero`](Self::zero).
    unsafe fn sum4(v: [Self::V; 4]) -> [f32; 4];
    /// Two vectors' worth of stored elements, widened, in the order of [`place`]. Of int8 only the integers.
    ///
    /// # Safety
    /// See [`zero`](Self::zero); `2 * LANES` elements of type `D` must be readable at `p`.
    unsafe fn pair<const D: u8>(p: *const u8) -> [Self::V; 2];
    /// As [`pair`](Self::pair), only the first `n` elements; zeros for the others.
    ///
    /// # Safety
    /// See [`zero`](Self::zero); `n < 2 * LANES` elements of type `D` must be readable at `p`.
    unsafe fn pair_part<const D: u8>(p: *const u8, n: usize) -> [Self::V; 2];
}

/// Where element `i` of a [pair](Vector::pair) of vectors of `lanes` goes: bf16 is widened by splitting even from odd
/// elements, one instruction for each half; the other types keep their order.
#[inline(always)]
pub(crate) const fn place<const D: u8>(i: usize, lanes: usize) -> usize {
    if D == BF16 { i % 2 * lanes + i / 2 } else { i }
}

/// Copies `n` elements to the start of a pair's worth of zeros.
///
/// # Safety
/// `n` elements of type `D` must be readable at `p`.
#[inline(always)]
pub(crate) unsafe fn padded<const D: u8>(p: *const u8, n: usize) -> [u8; 128] {
    let mut bytes = [0; 128];
    // SAFETY: the caller guarantees n elements, and at most a pair of vectors, 128 bytes, is asked for.
    unsafe { std::ptr::copy_nonoverlapping(p, bytes.as_mut_ptr(), (n * code_size(D)).min(128)) };
    bytes
}
