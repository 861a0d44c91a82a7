//! `bitmap_dot` of bf16 weights on AMX tiles: a weight is expanded once for all activations.
//!
//! Sixteen rows by 64 columns are expanded into two tiles that stay in L1, and multiplied by tiles of x, C\[16 rows, 16 columns of
//! x\] as in the blocked product. More than [`FEW`] activations are rounded to bf16, as for dense weights. Fewer are cut into bf16
//! parts with columns of their own: three add up to an `f32`, two to it within 2⁻¹⁸ of it, or 64 · 2⁻²⁴. A tile adds the products of
//! its even and its odd columns one after the other, then sums of tiles and of parts: with (k/32 + 19) · 2⁻²⁴ for that, three
//! parts are always as exact as [`linear`](crate::Compute::linear) promises, and two from 720 columns on.

use super::avx512::bitmap_dot_bf16_avx512;
use super::{BitmapDot, STEP};
use crate::dtype::bitmap::mask_bits;
use crate::ops::gemm::FEW;
use crate::simd::amx::{load_tile_config, release_tiles};
use crate::simd::avx512::{LANES, prefetch, transpose16, upto16};
use crate::simd::avx512_bitmap::{LINE, place_16_bits};
use std::arch::asm;
use std::arch::x86_64::*;

/// Bytes of a tile.
const TILE: usize = 1024;
/// Rows of a tile.
const ROWS: usize = 16;
/// Tiles that are expanded before they are multiplied: while the one pair is loaded, the next is expanded beside it.
const AHEAD: usize = 2;
/// Parts that add up to an `f32`.
const ALL_PARTS: usize = 3;
/// From this many columns on two parts are enough.
const MANY_COLUMNS: usize = 720;
/// What VFPCLASSPS calls both infinities.
const INFINITE: i32 = 0x08 | 0x10;
/// Up to this many activations multiplying in registers takes less time.
const FEWER: usize = 4;

/// A buffer of tiles.
#[repr(align(64))]
struct Tiles<const N: usize>([[u8; TILE]; N]);

/// 32 values of a row of x, zeros past the last of `left`.
///
/// # Safety
/// They must be readable; AVX-512.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
unsafe fn load_step(x: *const f32, left: usize) -> [__m512; 2] {
    // SAFETY: the masks end at the last value.
    unsafe {
        let high = _mm512_maskz_loadu_ps(upto16(left.saturating_sub(LANES)), x.wrapping_add(LANES));
        [_mm512_maskz_loadu_ps(upto16(left), x), high]
    }
}

/// The parts that `m` activations of `cols` elements are multiplied in: as few tiles as the promised error allows.
fn parts(m: usize, cols: usize) -> usize {
    match m {
        _ if m > FEW => 1,
        _ if cols < MANY_COLUMNS || m * ALL_PARTS <= ROWS => ALL_PARTS,
        _ => 2,
    }
}

/// Values of bf16 that add up to `x`, the largest first, which alone is infinite.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
fn cut(x: __m512) -> [__m512; ALL_PARTS] {
    let round = |v: __m512| _mm512_cvtpbh_ps(_mm512_cvtneps_pbh(v));
    let first = round(x);
    let finite = !_mm512_fpclass_ps_mask::<{ INFINITE }>(first);
    let rest = _mm512_maskz_sub_ps(finite, x, first);
    let second = round(rest);
    [first, second, _mm512_sub_ps(rest, second)]
}

/// x as `B` tiles for each [`STEP`] columns: row p holds elements 2p and 2p + 1 of all columns of the tile, which are the first,
/// or only, parts of all activations, then their second ones, then their third ones.
///
/// # Safety
/// See [`BitmapDotFn`](super::BitmapDotFn); the parts must fit B tiles; AVX-512 with BF16.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
unsafe fn arrange<const B: usize>(a: &BitmapDot, parts: usize) {
    let (cols, m) = (a.rows.cols, a.m);
    for step in 0..cols.div_ceil(STEP) {
        let mut columns = [[_mm512_setzero_si512(); ROWS]; B];
        for t in 0..m {
            // SAFETY: row t of x has `cols` values.
            let values = unsafe { load_step(a.x.add(t * cols + step * STEP), cols - step * STEP) };
            let cuts = values.map(|v| cut(v));
            for part in 0..parts {
                let [low, high] = cuts.map(|cut| cut[part]);
                let column = part * m + t;
                columns[column / ROWS][column % ROWS] = bits(_mm512_cvtne2ps_pbh(high, low));
            }
        }
        for (b, columns) in columns.into_iter().enumerate() {
            for (row, values) in transpose16(columns).into_iter().enumerate() {
                // SAFETY: there is room for B tiles per step.
                unsafe { _mm512_store_si512(a.arranged.add((step * B + b) * TILE + row * 64).cast(), values) };
            }
        }
    }
}

/// The bits of 32 bf16 values.
#[inline(always)]
fn bits(v: __m512bh) -> __m512i {
    // SAFETY: both are 64 bytes without invalid bit patterns.
    unsafe { std::mem::transmute(v) }
}

/// A row on its way: its mask, its next stored elements, and how far after them those of the row that comes [`ROWS`] later lie.
#[derive(Clone, Copy)]
struct Cursor {
    mask: *const u8,
    values: *const u8,
    mask_ahead: usize,
    values_ahead: usize,
}

/// The products of rows `j..j + ROWS` of the set, the last again where there are fewer, with the arranged activations.
///
/// # Safety
/// See [`BitmapDotFn`](super::BitmapDotFn); row j must be in the set, x arranged, and unless `NEAR_END` a vector must be readable after the
/// rows' last elements; AMX, configured, and AVX-512 with VBMI2.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi2,popcnt")]
unsafe fn group<const B: usize, const NEAR_END: bool>(a: &BitmapDot, j: usize, sums: &mut Tiles<B>) {
    let (cols, last) = (a.rows.cols, a.rows.count - 1);
    let mut expanded = [const { Tiles([[0; TILE]; AHEAD]) }; 2];
    // SAFETY: the rows are in the set; columns stay below cols; the tiles have the configured shape, and the compiler uses none.
    unsafe {
        let mut cursors: [Cursor; ROWS] = std::array::from_fn(|r| {
            let (mask, values) = a.rows.row((j + r).min(last));
            let next = a.rows.row((j + ROWS + r).min(last));
            let mask_ahead = next.0.addr().wrapping_sub(mask.addr());
            Cursor { mask, values, mask_ahead, values_ahead: next.1.addr().wrapping_sub(values.addr()) }
        });
        asm!("tilezero tmm0", "tilezero tmm1", options(nomem, nostack));
        for (pair, from) in (0..cols).step_by(AHEAD * STEP).enumerate() {
            let steps = (cols - from).min(AHEAD * STEP).div_ceil(STEP);
            let tiles = expanded[pair % 2].0.as_mut_ptr().cast::<u8>();
            for (r, cursor) in cursors.iter_mut().enumerate() {
                let mut values = cursor.values;
                if from % LINE == 0 {
                    prefetch(cursor.mask.wrapping_add(cursor.mask_ahead + from / 8), false);
                }
                for step in 0..steps {
                    prefetch(values.wrapping_add(cursor.values_ahead), false);
                    let bits = mask_bits::<4>(cursor.mask, from + step * STEP, cols) as u32;
                    let row = place_16_bits(bits, &mut values, NEAR_END);
                    _mm512_store_si512(tiles.add(step * TILE + r * 64).cast(), row);
                }
                cursor.values = values;
            }
            for step in 0..steps {
                let x = a.arranged.add((from / STEP + step) * B * TILE);
                asm!(
                    "tileloadd tmm4, [{w} + {row}]",
                    "tileloadd tmm6, [{x} + {row}]",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    w = in(reg) tiles.add(step * TILE), x = in(reg) x, row = in(reg) 64usize, options(nostack, readonly)
                );
                if B == 2 {
                    asm!(
                        "tileloadd tmm7, [{x} + {row}]",
                        "tdpbf16ps tmm1, tmm4, tmm7",
                        x = in(reg) x.add(TILE), row = in(reg) 64usize, options(nostack, readonly)
                    );
                }
            }
        }
        let to = sums.0.as_mut_ptr();
        asm!("tilestored [{to} + {row}], tmm0", to = in(reg) to, row = in(reg) 64usize, options(nostack));
        if B == 2 {
            asm!("tilestored [{to} + {row}], tmm1", to = in(reg) to.add(1), row = in(reg) 64usize, options(nostack));
        }
    }
}

/// Writes the sums of rows from `j` on.
///
/// # Safety
/// See [`BitmapDotFn`](super::BitmapDotFn); row j must be in the set; AVX-512.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
unsafe fn finish<const B: usize>(a: &BitmapDot, parts: usize, j: usize, sums: &Tiles<B>) {
    // By column of x: what the rows have there.
    let mut columns = [[_mm512_setzero_si512(); ROWS]; B];
    for (columns, tile) in columns.iter_mut().zip(&sums.0) {
        // SAFETY: a tile is sixteen vectors.
        *columns = transpose16(std::array::from_fn(|r| unsafe { _mm512_load_si512(tile.as_ptr().add(r * 64).cast()) }));
    }
    let column = |c: usize| _mm512_castsi512_ps(columns[c / ROWS][c % ROWS]);
    for t in 0..a.m {
        // The smallest part first.
        let last = column((parts - 1) * a.m + t);
        let sum = (0..parts - 1).rev().fold(last, |sum, part| _mm512_add_ps(sum, column(part * a.m + t)));
        // SAFETY: the mask ends at the last row of the set.
        unsafe { _mm512_mask_storeu_ps(a.out.add(t * a.out_stride + j), upto16(a.rows.count - j), sum) };
    }
}

/// All rows by activations in `parts`, all of which are the columns of `B` tiles.
///
/// # Safety
/// See [`BitmapDotFn`](super::BitmapDotFn); the parts must fit; AMX, and AVX-512 with VBMI2 and BF16.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi2,avx512bf16,popcnt")]
unsafe fn strip<const B: usize>(a: &BitmapDot, parts: usize) {
    let mut sums = Tiles([[0; TILE]; B]);
    // SAFETY: the contract is the caller's; rows are in range.
    unsafe {
        arrange::<B>(a, parts);
        load_tile_config();
        for j in (0..a.rows.count).step_by(ROWS) {
            if (j..a.rows.count.min(j + ROWS)).any(|j| a.rows.near_end(j)) {
                group::<B, true>(a, j, &mut sums);
            } else {
                group::<B, false>(a, j, &mut sums);
            }
            finish::<B>(a, parts, j, &sums);
        }
        release_tiles();
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
            _ if a.m <= FEWER => bitmap_dot_bf16_avx512(a),
            0..=ROWS => strip::<1>(a, parts),
            _ => strip::<2>(a, parts),
        }
    }
}
