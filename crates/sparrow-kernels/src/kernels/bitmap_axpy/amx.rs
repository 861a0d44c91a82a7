//! `bitmap_axpy` of bf16 weights on AMX tiles: a weight is expanded once for all activations.
//!
//! Sixteen rows by 32 columns are a tile as they are expanded, of pairs of neighbouring columns. Multiplied by
//! coefficients in pairs with zeros, (a, 0), they give the sums of the even columns, by (0, a) those of the odd ones;
//! so nothing is shuffled. Sums of all rows of a pass stay in tiles. Coefficients are rounded or cut as in
//! [`bitmap_dot`](crate::kernels::bitmap_dot::amx): two parts keep to the promised error from 96 rows on.

use super::BitmapAxpy;
use super::avx512::bitmap_axpy_bf16_avx512;
use crate::kernels::bitmap_dot::tiles::{Cursor, expand_tiles};
use crate::rows::{FEW, STEP};
use crate::simd::amx::{load_tile_config, release_tiles};
use crate::simd::avx512::{LANES, upto16};
use crate::simd::tiles::{ALL_PARTS, ROWS, STEPS, Tiles, cut};
use std::arch::asm;
use std::arch::x86_64::*;

/// The most groups of sixteen rows of a pass. Twice as many crowd L1 where rows begin some KiB apart, and take up to
/// twice the time; half as many load and store sums too often.
const GROUPS: usize = 4;
/// Up to this many activations adding in registers takes less time.
const FEWER: usize = 2;
/// From this many rows on two parts of a coefficient are enough, and a pass is worth its sums.
const MANY_ROWS: usize = 96;

/// The coefficients of one group by the even and the odd columns.
type Pair = [[[i32; LANES]; ROWS]; 2];

/// The coefficients of rows `j..j + ROWS` of the set, zeros for those that it does not have, for activations
/// `t0..t0 + m` in `parts`.
///
/// # Safety
/// See [`BitmapAxpyFn`](super::BitmapAxpyFn); the activations must exist, and `m * parts <= ROWS`; AVX-512 with BF16.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
unsafe fn coefficients(a: &BitmapAxpy, j: usize, (t0, m): (usize, usize), parts: usize, to: &mut Pair) {
    let mask = upto16(a.rows.count.saturating_sub(j));
    for t in 0..m {
        // SAFETY: the masks end at the last row of the set, which has a coefficient.
        let values = unsafe {
            let from = a.a.add((t0 + t) * a.a_stride);
            if a.columns.is_null() {
                _mm512_maskz_loadu_ps(mask, from.wrapping_add(j))
            } else {
                let columns = _mm512_maskz_loadu_epi32(mask, a.columns.wrapping_add(j).cast());
                _mm512_mask_i32gather_ps::<4>(_mm512_setzero_ps(), mask, columns, from)
            }
        };
        for (part, values) in cut(values).into_iter().enumerate().take(parts) {
            // A bf16 is the upper half of an f32.
            let odd = _mm512_castps_si512(values);
            for (to, values) in to.iter_mut().zip([_mm512_srli_epi32::<16>(odd), odd]) {
                // SAFETY: a row of the tile is one vector.
                unsafe { _mm512_storeu_si512(to[part * m + t].as_mut_ptr().cast(), values) };
            }
        }
    }
}

/// Adds `sums`, even and odd columns of [`STEPS`] steps, to columns `from..` of the results of activations
/// `t0..t0 + m`.
///
/// # Safety
/// See [`BitmapAxpyFn`](super::BitmapAxpyFn); the activations must exist; AVX-512.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
unsafe fn add(a: &BitmapAxpy, from: usize, (t0, m): (usize, usize), parts: usize, sums: &Tiles<{ 2 * STEPS }>) {
    let cols = a.rows.cols;
    let low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    let high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
    for (step, c) in (from..cols.min(from + STEPS * STEP)).step_by(STEP).enumerate() {
        let (first, second) = (upto16(cols - c), upto16((cols - c).saturating_sub(LANES)));
        for t in 0..m {
            // The smallest part first.
            let [even, odd] = [0, 1].map(|half| {
                // SAFETY: a tile is sixteen vectors.
                let row = |part: usize| unsafe {
                    _mm512_load_ps(sums.0[2 * step + half].as_ptr().add((part * m + t) * 64).cast())
                };
                (0..parts - 1).rev().fold(row(parts - 1), |sum, part| _mm512_add_ps(sum, row(part)))
            });
            // SAFETY: the masks end at the last column.
            unsafe {
                let at = a.out.add((t0 + t) * cols + c);
                for (at, mask, order) in [(at, first, low), (at.wrapping_add(LANES), second, high)] {
                    let sum = _mm512_permutex2var_ps(even, order, odd);
                    _mm512_mask_storeu_ps(at, mask, _mm512_add_ps(_mm512_maskz_loadu_ps(mask, at), sum));
                }
            }
        }
    }
}

/// Adds up to [`GROUPS`] groups of rows, from `j` on, for some activations in `parts`.
///
/// # Safety
/// See [`BitmapAxpyFn`](super::BitmapAxpyFn); row j must be in the set, the activations exist and their parts fit a
/// tile, and unless `NEAR_END` a vector be readable after the rows' last elements; AMX, configured, and AVX-512 with
/// VBMI2 and BF16.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi2,avx512bf16,popcnt")]
unsafe fn pass<const NEAR_END: bool>(a: &BitmapAxpy, j: usize, tokens: (usize, usize), parts: usize) {
    let cols = a.rows.cols;
    let groups = (a.rows.count - j).div_ceil(ROWS).min(GROUPS);
    let mut pairs: [Pair; GROUPS] = [[[[0; LANES]; ROWS]; 2]; GROUPS];
    let mut expanded = [Tiles::<STEPS>::ZERO; 2];
    let mut sums = Tiles::<{ 2 * STEPS }>::ZERO;
    // SAFETY: rows and activations are there; columns stay below cols; the tiles have the configured shape, and the
    // compiler uses none.
    unsafe {
        let mut cursors: [_; GROUPS] = std::array::from_fn(|g| Cursor::by_parts(&a.rows, j + g * ROWS));
        for (g, pair) in pairs[..groups].iter_mut().enumerate() {
            coefficients(a, j + g * ROWS, tokens, parts, pair);
        }
        for from in (0..cols).step_by(STEPS * STEP) {
            let steps = (cols - from).min(STEPS * STEP).div_ceil(STEP);
            asm!("tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3", options(nomem, nostack));
            for (g, pair) in pairs[..groups].iter().enumerate() {
                let tiles = expanded[g % 2].0.as_mut_ptr().cast::<u8>();
                expand_tiles::<NEAR_END>(&mut cursors[g], cols, from, steps, tiles);
                // The second tile is an old one where the columns end: its sums are not added.
                asm!(
                    "tileloadd tmm4, [{even} + {row}]",
                    "tileloadd tmm6, [{w} + {row}]",
                    "tileloadd tmm5, [{odd} + {row}]",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    "tdpbf16ps tmm1, tmm5, tmm6",
                    "tileloadd tmm7, [{w} + {row} + 1024]",
                    "tdpbf16ps tmm2, tmm4, tmm7",
                    "tdpbf16ps tmm3, tmm5, tmm7",
                    even = in(reg) &raw const pair[0], odd = in(reg) &raw const pair[1], w = in(reg) tiles,
                    row = in(reg) 64usize, options(nostack, readonly)
                );
            }
            asm!(
                "tilestored [{to} + {row}], tmm0",
                "tilestored [{to} + {row} + 1024], tmm1",
                "tilestored [{to} + {row} + 2048], tmm2",
                "tilestored [{to} + {row} + 3072], tmm3",
                to = in(reg) sums.0.as_mut_ptr(), row = in(reg) 64usize, options(nostack)
            );
            add(a, from, tokens, parts, &sums);
        }
    }
}

/// # Safety
/// See [`BitmapAxpyFn`](super::BitmapAxpyFn); AMX, and AVX-512 with VBMI2 and BF16.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi2,avx512bf16,popcnt")]
pub(crate) unsafe fn bitmap_axpy_bf16_amx(a: &BitmapAxpy) {
    if a.m <= FEWER || a.rows.count < MANY_ROWS {
        // SAFETY: the contract is the caller's.
        return unsafe { bitmap_axpy_bf16_avx512(a) };
    }
    let (most, parts) = match a.m {
        _ if !a.exact => (ROWS, 1),
        m if m * ALL_PARTS <= ROWS => (m, ALL_PARTS),
        _ => (FEW, 2),
    };
    // SAFETY: the contract is the caller's; rows and activations are in range, and their parts fit a tile.
    unsafe {
        load_tile_config();
        for t in (0..a.m).step_by(most) {
            let tokens = (t, most.min(a.m - t));
            for j in (0..a.rows.count).step_by(GROUPS * ROWS) {
                if a.rows.any_near_end(j..j + GROUPS * ROWS) {
                    pass::<true>(a, j, tokens, parts);
                } else {
                    pass::<false>(a, j, tokens, parts);
                }
            }
        }
        release_tiles();
    }
}
