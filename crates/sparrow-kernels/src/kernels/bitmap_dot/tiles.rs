//! Rows of bf16 bitmaps expanded into AMX tiles.

use crate::dtype::bitmap::mask_bits;
use crate::rows::{BitmapRows, STEP};
use crate::simd::avx512_bitmap::{LINE, place_16_bits};
use crate::simd::prefetch;
use crate::simd::tiles::{ROWS, TILE};
use std::arch::x86_64::*;

/// Bytes of stored elements that are asked for ahead in a row: more than [`STEPS`](crate::simd::tiles::STEPS) steps
/// have.
const NEXT_PARTS: usize = 192;
/// A row on its way: its mask, its next stored elements, and how far after them lies what is asked for.
#[derive(Clone, Copy)]
pub(crate) struct Cursor {
    mask: *const u8,
    values: *const u8,
    mask_ahead: usize,
    values_ahead: usize,
}

impl Cursor {
    /// Rows `j..j + ROWS` of the set, the last again where there are fewer, to be expanded whole: the next sixteen are
    /// asked for.
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

    /// As [`whole`](Self::whole), to be expanded bit by bit beside many others: what follows in the same row is asked
    /// for, now what it begins with.
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

/// Columns from `from` on, a multiple of [`STEPS`](crate::simd::tiles::STEPS)` * `[`STEP`], of sixteen rows of `cols`
/// columns as `steps` tiles of [`STEP`] columns, one row of a tile each, zeros past the last.
///
/// # Safety
/// The cursors must be there, `from + (steps - 1) * STEP < cols`, the tiles writable, and unless `NEAR_END` a vector
/// readable after the rows' last elements; AVX-512 with VBMI2.
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
