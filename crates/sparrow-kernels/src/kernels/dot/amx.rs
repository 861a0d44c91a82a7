//! Products of dense bf16 rows with more than [`FEW`](crate::rows::FEW) activations on AMX tiles, see
//! [`tiles`](super::tiles): rows are copied into tiles as they come from memory.

use super::RowsDot;
use super::tiles::{TileRows, strip};
use crate::rows::{Rows, STEP};
use crate::simd::avx512::upto32;
use crate::simd::prefetch;
use crate::simd::tiles::{ROWS, TILE};
use std::arch::x86_64::*;
use std::ops::Range;

/// A row, and how far from it the row of the next sixteen lies.
#[derive(Clone, Copy)]
pub(crate) struct Cursor {
    row: *const u8,
    ahead: usize,
}

impl TileRows for Rows {
    type Cursor = Cursor;

    fn count(&self) -> usize {
        self.count
    }

    fn cols(&self) -> usize {
        self.cols
    }

    unsafe fn any_near_end(&self, _: Range<usize>) -> bool {
        false
    }

    #[inline(always)]
    unsafe fn cursors(&self, j: usize) -> [Cursor; ROWS] {
        let last = self.count - 1;
        std::array::from_fn(|r| {
            // SAFETY: the rows are in the set.
            let [row, next] = unsafe { [j, j + ROWS].map(|j| self.row((j + r).min(last))) };
            Cursor { row, ahead: next.addr().wrapping_sub(row.addr()) }
        })
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    unsafe fn tiles<const NEAR_END: bool>(
        cursors: &mut [Cursor; ROWS],
        cols: usize,
        from: usize,
        steps: usize,
        tiles: *mut u8,
    ) {
        for (r, cursor) in cursors.iter().enumerate() {
            for step in 0..steps {
                let column = from + step * STEP;
                let at = cursor.row.wrapping_add(2 * column);
                prefetch(at.wrapping_add(cursor.ahead), false);
                // SAFETY: the mask ends at the row's end; the caller vouches for the tiles.
                unsafe {
                    let values = _mm512_maskz_loadu_epi16(upto32(cols - column), at.cast());
                    _mm512_store_si512(tiles.add(step * TILE + r * 64).cast(), values);
                }
            }
        }
    }
}

/// # Safety
/// See [`RowsDotFn`](super::RowsDotFn), for 9 to 32 activations; AMX, and AVX-512 with VBMI2 and BF16.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi2,avx512bf16,popcnt")]
pub(crate) unsafe fn dot_bf16_amx(a: &RowsDot<Rows>) {
    // SAFETY: the contract is the caller's.
    unsafe { if a.m <= ROWS { strip::<_, 1>(a, 1) } else { strip::<_, 2>(a, 1) } }
}
