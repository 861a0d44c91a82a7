//! `bitmap_dot` of bf16 weights on AMX tiles: a weight is expanded once for all activations, see
//! [`tiles`](crate::kernels::dot::tiles).

use super::BitmapDot;
use super::avx512::bitmap_dot_bf16_avx512;
use super::tiles::{Cursor, expand_tiles};
use crate::kernels::dot::tiles::{TileRows, parts, strip};
use crate::rows::{BitmapRows, FEW};
use crate::simd::tiles::ROWS;
use std::ops::Range;

/// Up to this many activations multiplying in registers takes less time, and up to [`FEW`] if the rows do not fill a
/// tile.
const FEWER: usize = 4;

impl TileRows for BitmapRows {
    type Cursor = Cursor;

    fn count(&self) -> usize {
        self.count
    }

    fn cols(&self) -> usize {
        self.cols
    }

    #[inline(always)]
    unsafe fn any_near_end(&self, range: Range<usize>) -> bool {
        // SAFETY: the contract is the caller's; so below.
        unsafe { BitmapRows::any_near_end(self, range) }
    }

    #[inline(always)]
    unsafe fn cursors(&self, j: usize) -> [Cursor; ROWS] {
        // SAFETY: as above.
        unsafe { Cursor::whole(self, j) }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi2,popcnt")]
    unsafe fn tiles<const NEAR_END: bool>(
        cursors: &mut [Cursor; ROWS],
        cols: usize,
        from: usize,
        steps: usize,
        tiles: *mut u8,
    ) {
        // SAFETY: as above.
        unsafe { expand_tiles::<NEAR_END>(cursors, cols, from, steps, tiles) }
    }
}

/// # Safety
/// See [`BitmapDotFn`](super::BitmapDotFn), for up to 32 activations; AMX, and AVX-512 with VBMI2 and BF16.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi2,avx512bf16,popcnt")]
pub(crate) unsafe fn bitmap_dot_bf16_amx(a: &BitmapDot) {
    let parts = parts(a.m, a.rows.cols);
    // SAFETY: the contract is the caller's; more than two tiles of parts are none of 32 activations.
    unsafe {
        match parts * a.m {
            _ if a.m <= FEWER || a.m <= FEW && a.rows.count < ROWS => bitmap_dot_bf16_avx512(a),
            0..=ROWS => strip::<_, 1>(a, parts),
            _ => strip::<_, 2>(a, parts),
        }
    }
}
