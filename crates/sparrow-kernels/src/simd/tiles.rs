//! What kernels on tiles of bf16 share: the shape of a tile, buffers of tiles, rounding to bf16, and `f32` as sums of bf16.

use super::avx512::{LANES, upto16};
use std::arch::x86_64::*;

/// Bytes of a tile.
pub(crate) const TILE: usize = 1024;
/// Rows of a tile.
pub(crate) const ROWS: usize = 16;
/// Tiles of the same rows that are expanded before they are multiplied: while one pair is loaded, the next is expanded
/// beside it.
pub(crate) const STEPS: usize = 2;
/// Parts that add up to an `f32`.
pub(crate) const ALL_PARTS: usize = 3;
/// What VFPCLASSPS calls both infinities.
const INFINITE: i32 = 0x08 | 0x10;

/// A buffer of tiles.
#[repr(align(64))]
pub(crate) struct Tiles<const N: usize>(pub [[u8; TILE]; N]);

impl<const N: usize> Tiles<N> {
    pub(crate) const ZERO: Self = Self([[0; TILE]; N]);
}

/// Values of bf16 that add up to `x`, the largest first, which alone is infinite.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
pub(crate) fn cut(x: __m512) -> [__m512; ALL_PARTS] {
    let round = |v: __m512| _mm512_cvtpbh_ps(_mm512_cvtneps_pbh(v));
    let first = round(x);
    let finite = !_mm512_fpclass_ps_mask::<{ INFINITE }>(first);
    let rest = _mm512_maskz_sub_ps(finite, x, first);
    let second = round(rest);
    [first, second, _mm512_sub_ps(rest, second)]
}

/// The bits of 32 bf16 values.
#[inline(always)]
pub(crate) fn bits(v: __m512bh) -> __m512i {
    // SAFETY: both are 64 bytes without invalid bit patterns.
    unsafe { std::mem::transmute(v) }
}

/// 32 pairs of bf16 values from their bits.
#[inline(always)]
pub(crate) fn pairs(v: __m512i) -> __m512bh {
    // SAFETY: as of [`bits`].
    unsafe { std::mem::transmute(v) }
}

/// 32 values rounded to bf16, or zeros after the first `n`.
///
/// # Safety
/// They must be readable.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
pub(crate) unsafe fn load_rounded(p: *const f32, n: usize) -> __m512i {
    // SAFETY: the masks end at the last value.
    let (low, high) = unsafe {
        let high = _mm512_maskz_loadu_ps(upto16(n.saturating_sub(LANES)), p.wrapping_add(LANES));
        (_mm512_maskz_loadu_ps(upto16(n), p), high)
    };
    bits(_mm512_cvtne2ps_pbh(high, low))
}
