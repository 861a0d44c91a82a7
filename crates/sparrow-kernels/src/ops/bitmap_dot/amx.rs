//! `bitmap_dot` of bf16 weights on AMX tiles: a weight is expanded once for all activations.
//!
//! Sixteen rows by 64 columns are expanded into two tiles that stay in L1, and multiplied by tiles of x, C\[16 rows, 16 columns of
//! x\] as in the blocked product. More than [`FEW`] activations are rounded to bf16, as for dense weights. Fewer are cut into bf16
//! parts with columns of their own: three add up to an `f32`, two to it within 2⁻¹⁸ of it, or 64 · 2⁻²⁴. A tile adds the products of
//! its even and its odd columns one after the other, then sums of tiles and of parts: with (k/32 + 19) · 2⁻²⁴ for that, three
//! parts are always as exact as [`linear`](crate::Compute::linear) promises, and two from 720 columns on.

use super::avx512::bitmap_dot_bf16_avx512;
use super::tiles::*;
use super::{BitmapDot, STEP};
use crate::ops::gemm::FEW;
use crate::simd::amx::{load_tile_config, release_tiles};
use crate::simd::avx512::{LANES, transpose16, upto16};
use std::arch::asm;
use std::arch::x86_64::*;

/// From this many columns on two parts are enough.
const MANY_COLUMNS: usize = 720;
/// Up to this many activations multiplying in registers takes less time, and up to [`FEW`] if the rows do not fill a tile.
const FEWER: usize = 4;

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

/// The products of rows `j..j + ROWS` of the set, the last again where there are fewer, with the arranged activations.
///
/// # Safety
/// See [`BitmapDotFn`](super::BitmapDotFn); row j must be in the set, x arranged, and unless `NEAR_END` a vector must be readable after the
/// rows' last elements; AMX, configured, and AVX-512 with VBMI2.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi2,popcnt")]
unsafe fn group<const B: usize, const NEAR_END: bool>(a: &BitmapDot, j: usize, sums: &mut Tiles<B>) {
    let cols = a.rows.cols;
    let mut expanded = [Tiles::<STEPS>::ZERO; 2];
    // SAFETY: the rows are in the set; columns stay below cols; the tiles have the configured shape, and the compiler uses none.
    unsafe {
        let mut cursors = Cursor::whole(&a.rows, j);
        asm!("tilezero tmm0", "tilezero tmm1", options(nomem, nostack));
        for (pair, from) in (0..cols).step_by(STEPS * STEP).enumerate() {
            let steps = (cols - from).min(STEPS * STEP).div_ceil(STEP);
            let tiles = expanded[pair % 2].0.as_mut_ptr().cast::<u8>();
            expand_tiles::<NEAR_END>(&mut cursors, cols, from, steps, tiles);
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
    let mut sums = Tiles::<B>::ZERO;
    // SAFETY: the contract is the caller's; rows are in range.
    unsafe {
        arrange::<B>(a, parts);
        load_tile_config();
        for j in (0..a.rows.count).step_by(ROWS) {
            if a.rows.any_near_end(j..j + ROWS) {
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
            _ if a.m <= FEWER || a.m <= FEW && a.rows.count < ROWS => bitmap_dot_bf16_avx512(a),
            0..=ROWS => strip::<1>(a, parts),
            _ => strip::<2>(a, parts),
        }
    }
}
