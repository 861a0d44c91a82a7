//! What the kernels of bf16 bitmaps on AMX tiles share: rows expanded into tiles, and `f32` as sums of bf16.

use super::{BitmapRows, STEP};
use crate::dtype::bitmap::mask_bits;
use crate::simd::avx512::prefetch;
use crate::simd::avx512_bitmap::{LINE, place_16_bits};
use std::arch::x86_64::*;

/// Bytes of a tile.
pub(crate) const TILE: usize = 1024;
/// Rows of a tile.
pub(crate) const ROWS: usize = 16;
/// Tiles of the same rows that are expanded before they are multiplied: while one pair is loaded, the next is expanded beside it.
pub(crate) const STEPS: usize = 2;
/// Bytes of stored elements that are asked for ahead in a row: more than [`STEPS`] steps have.
const NEXT_PARTS: usize = 192;
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

/// A row on its way: its mask, its next stored elements, and how far after them lies what is asked for.
#[derive(Clone, Copy)]
pub(crate) struct Cursor {
    mask: *const u8,
    values: *const u8,
    mask_ahead: usize,
    values_ahead: usize,
}

impl Cursor {
    /// Rows `j..j + ROWS` of the set, the last again where there are fewer, to be expanded whole: the next sixteen are asked for.
    ///
    /// # Safety
    /// The set must have a row and describe readable memory.
    #[inline(always)]
    pub(crate) unsafe fn whole(rows: &BitmapRows, j: usize) -> [Cursor; ROWS] {
        let last = rows.count - 1;
        std::array::from_fn(|r| {
            // SAFETY: the rows are in the set.
            let [(mask, values), next] = unsafe { [j, j + ROWS].map(|j| rows.row((j + r).min(last))) };
            let mask_ahead = next.0.addr().wrapping_sub(mask.addr());
            Cursor { mask, values, mask_ahead, values_ahead: next.1.addr().wrapping_sub(values.addr()) }
        })
    }

    /// As [`whole`](Self::whole), to be expanded bit by bit beside many others: what follows in the same row is asked for, now
    /// what it begins with.
    ///
    /// # Safety
    /// As [`whole`](Self::whole).
    #[inline(always)]
    pub(crate) unsafe fn by_parts(rows: &BitmapRows, j: usize) -> [Cursor; ROWS] {
        let last = rows.count - 1;
        std::array::from_fn(|r| {
            // SAFETY: the row is in the set.
            let (mask, values) = unsafe { rows.row((j + r).min(last)) };
            prefetch(mask, false);
            for line in (0..NEXT_PARTS).step_by(64) {
                prefetch(values.wrapping_add(line), false);
            }
            Cursor { mask, values, mask_ahead: LINE / 8, values_ahead: NEXT_PARTS }
        })
    }
}

/// Columns from `from` on, a multiple of [`STEPS`]` * `[`STEP`], of sixteen rows of `cols` columns as `steps` tiles of [`STEP`] columns, one
/// row of a tile each, zeros past the last.
///
/// # Safety
/// The cursors must be there, `from + (steps - 1) * STEP < cols`, the tiles writable, and unless `NEAR_END` a vector readable after the rows' last
/// elements; AVX-512 with VBMI2.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi2,popcnt")]
pub(crate) unsafe fn expand_tiles<const NEAR_END: bool>(
    cursors: &mut [Cursor; ROWS],
    cols: usize,
    from: usize,
    steps: usize,
    tiles: *mut u8,
) {
    for (r, cursor) in cursors.iter_mut().enumerate() {
        let mut values = cursor.values;
        if from.is_multiple_of(LINE) {
            prefetch(cursor.mask.wrapping_add(cursor.mask_ahead + from / 8), false);
        }
        for step in 0..steps {
            prefetch(values.wrapping_add(cursor.values_ahead), false);
            // SAFETY: the contract is the caller's.
            unsafe {
                let bits = mask_bits::<4>(cursor.mask, from + step * STEP, cols) as u32;
                let row = place_16_bits(bits, &mut values, NEAR_END);
                _mm512_store_si512(tiles.add(step * TILE + r * 64).cast(), row);
            }
        }
        cursor.values = values;
    }
}
