//! Products of bf16 rows, however they are stored, with up to 32 activations on AMX tiles: a row is read once for all
//! of them, and not packed.
//!
//! Sixteen rows by 64 columns become two tiles that stay in L1, and are multiplied by tiles of x,
//! C\[16 rows, 16 columns of x\] as in the blocked product. More than [`FEW`] activations are rounded to bf16, as
//! there. Fewer are cut into bf16 parts with columns of their own: three add up to an `f32`, two to it within 2⁻¹⁸ of
//! it, or 64 · 2⁻²⁴. A tile adds the products of its even and its odd columns one after the other, then sums of tiles
//! and of parts: with (k/32 + 19) · 2⁻²⁴ for that, three parts are always as exact as
//! [`linear`](crate::Compute::linear) promises, and two from 720 columns on.

use super::RowsDot;
use crate::rows::{FEW, STEP};
use crate::simd::amx::{load_tile_config, release_tiles};
use crate::simd::avx512::{LANES, transpose16, upto16};
use crate::simd::tiles::{ALL_PARTS, ROWS, STEPS, TILE, Tiles, bits, cut};
use std::arch::asm;
use std::arch::x86_64::*;
use std::ops::Range;

/// Some rows of a weight, at least one.
///
/// # Safety
/// For all methods: the CPU must have AVX-512 with VBMI2, and the set describe readable memory.
pub(crate) trait TileRows: Copy {
    /// A row on its way.
    type Cursor;

    fn count(&self) -> usize;
    fn cols(&self) -> usize;

    /// Whether less than a vector follows the last element of one of the rows `range`, as far as there are.
    ///
    /// # Safety
    /// See above.
    unsafe fn any_near_end(&self, range: Range<usize>) -> bool;

    /// Rows `j..j + ROWS`, the last again where there are fewer; the next sixteen are asked for as these are read.
    ///
    /// # Safety
    /// See above; row j must be in the set.
    unsafe fn cursors(&self, j: usize) -> [Self::Cursor; ROWS];

    /// Columns from `from` on, a multiple of [`STEPS`]` * `[`STEP`], of rows of `cols` columns as `steps` tiles of
    /// [`STEP`] columns, one row of a tile each, zeros past the last.
    ///
    /// # Safety
    /// See above; `from + (steps - 1) * STEP < cols`, tiles must be writable and aligned, and unless `NEAR_END` a
    /// vector readable after the rows' last elements.
    unsafe fn tiles<const NEAR_END: bool>(
        cursors: &mut [Self::Cursor; ROWS],
        cols: usize,
        from: usize,
        steps: usize,
        tiles: *mut u8,
    );
}

/// From this many columns on two parts are enough.
const MANY_COLUMNS: usize = 720;

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
pub(crate) fn parts(m: usize, cols: usize) -> usize {
    match m {
        _ if m > FEW => 1,
        _ if cols < MANY_COLUMNS || m * ALL_PARTS <= ROWS => ALL_PARTS,
        _ => 2,
    }
}

/// x as `B` tiles for each [`STEP`] columns: row p holds elements 2p and 2p + 1 of all columns of the tile, which are
/// the first, or only, parts of all activations, then their second ones, then their third ones.
///
/// # Safety
/// See [`RowsDotFn`](super::RowsDotFn); the parts must fit B tiles; AVX-512 with BF16.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
unsafe fn arrange<R: TileRows, const B: usize>(a: &RowsDot<R>, parts: usize) {
    let (cols, m) = (a.rows.cols(), a.m);
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
/// See [`RowsDotFn`](super::RowsDotFn); row j must be in the set, x arranged, and unless `NEAR_END` a vector must be
/// readable after the rows' last elements; AMX, configured, and AVX-512 with VBMI2.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi2,popcnt")]
unsafe fn group<R: TileRows, const B: usize, const NEAR_END: bool>(a: &RowsDot<R>, j: usize, sums: &mut Tiles<B>) {
    let cols = a.rows.cols();
    let mut expanded = [Tiles::<STEPS>::ZERO; 2];
    // SAFETY: the rows are in the set; columns stay below cols; the tiles have the configured shape, and the compiler
    // uses none.
    unsafe {
        let mut cursors = a.rows.cursors(j);
        asm!("tilezero tmm0", "tilezero tmm1", options(nomem, nostack));
        for (pair, from) in (0..cols).step_by(STEPS * STEP).enumerate() {
            let steps = (cols - from).min(STEPS * STEP).div_ceil(STEP);
            let tiles = expanded[pair % 2].0.as_mut_ptr().cast::<u8>();
            R::tiles::<NEAR_END>(&mut cursors, cols, from, steps, tiles);
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
/// See [`RowsDotFn`](super::RowsDotFn); row j must be in the set; AVX-512.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
unsafe fn finish<R: TileRows, const B: usize>(a: &RowsDot<R>, parts: usize, j: usize, sums: &Tiles<B>) {
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
        unsafe { _mm512_mask_storeu_ps(a.out.add(t * a.out_stride + j), upto16(a.rows.count() - j), sum) };
    }
}

/// All rows by activations in `parts`, all of which are the columns of `B` tiles.
///
/// # Safety
/// See [`RowsDotFn`](super::RowsDotFn); the parts must fit; AMX, and AVX-512 with VBMI2 and BF16.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi2,avx512bf16,popcnt")]
pub(crate) unsafe fn strip<R: TileRows, const B: usize>(a: &RowsDot<R>, parts: usize) {
    let mut sums = Tiles::<B>::ZERO;
    // SAFETY: the contract is the caller's; rows are in range.
    unsafe {
        arrange::<R, B>(a, parts);
        load_tile_config();
        for j in (0..a.rows.count()).step_by(ROWS) {
            if a.rows.any_near_end(j..j + ROWS) {
                group::<R, B, true>(a, j, &mut sums);
            } else {
                group::<R, B, false>(a, j, &mut sums);
            }
            finish::<R, B>(a, parts, j, &sums);
        }
        release_tiles();
    }
}
