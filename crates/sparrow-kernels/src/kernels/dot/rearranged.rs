//! Products of dense rows of floats with some activations, for every vector tier: a row is read once for all of them, and
//! not packed. x is rearranged, in the order in which rows are widened and by groups of activations that are multiplied
//! together, so that every load of it is a whole vector and the next one follows.

use super::RowsDot;
use crate::dtype::{BF16, code_size};
use crate::rows::Rows;
use crate::simd::prefetch;
use crate::simd::vector::{Vector, place};

/// The most activations of a group: sums of so many, and widened rows, fit the registers.
const GROUP: usize = 5;

/// x in groups of activations: of every two vectors' worth of elements those of each activation, as [`place`] has them,
/// zeros after the last.
///
/// # Safety
/// See [`RowsDotFn`](super::RowsDotFn); the tier's features.
#[inline(always)]
unsafe fn arrange<V: Vector, const D: u8>(a: &RowsDot<Rows>, group: usize) {
    let (cols, step) = (a.rows.cols, 2 * V::LANES);
    let steps = cols.div_ceil(step);
    let mut to = a.arranged.cast::<f32>();
    for first in (0..a.m).step_by(group) {
        let here = group.min(a.m - first);
        for t in 0..here {
            // SAFETY: row t of x has `cols` values; there is room for whole steps of every activation.
            unsafe {
                let x = a.x.add((first + t) * cols);
                for s in 0..cols / step {
                    let (from, to) = (x.add(s * step), to.add((s * here + t) * step));
                    if D == BF16 {
                        for i in 0..V::LANES {
                            *to.add(i) = *from.add(2 * i);
                        }
                        for i in 0..V::LANES {
                            *to.add(V::LANES + i) = *from.add(2 * i + 1);
                        }
                    } else {
                        std::ptr::copy_nonoverlapping(from, to, step);
                    }
                }
                let done = cols / step * step;
                if done < cols {
                    let to = to.add((done / step * here + t) * step);
                    for i in 0..step {
                        let value = if done + i < cols { *x.add(done + i) } else { 0.0 };
                        *to.add(place::<D>(i, V::LANES)) = value;
                    }
                }
            }
        }
        to = to.wrapping_add(here * steps * step);
    }
}

/// Adds the products of a step of `R` rows and of `M` activations, which are rearranged at `x`.
///
/// # Safety
/// x must have a step of each activation; the tier's features.
#[inline(always)]
unsafe fn add<V: Vector, const R: usize, const M: usize>(w: [[V::V; 2]; R], x: *const f32, sums: &mut [[V::V; M]; R]) {
    for half in 0..2 {
        for m in 0..M {
            // SAFETY: the contract is the caller's.
            unsafe {
                let x = V::load(x.add((2 * m + half) * V::LANES));
                for r in 0..R {
                    sums[r][m] = V::fma(w[r][half], x, sums[r][m]);
                }
            }
        }
    }
}

/// `R` rows from `j` on by a group of `M` activations from `t` on, which are rearranged at `x`.
///
/// # Safety
/// See [`RowsDotFn`](super::RowsDotFn); they must exist; the tier's features.
#[inline(always)]
unsafe fn tile<V: Vector, const D: u8, const R: usize, const M: usize>(
    a: &RowsDot<Rows>,
    j: usize,
    t: usize,
    x: *const f32,
) {
    let (cols, step) = (a.rows.cols, 2 * V::LANES);
    let bytes = step * code_size(D);
    // SAFETY: rows and activations exist; x has whole steps, of which those of a row but the last are whole too.
    unsafe {
        let mut sums = [[V::zero(); M]; R];
        let mut w = [[V::zero(); 2]; R];
        let (mut rows, mut next) = ([std::ptr::null::<u8>(); R], [std::ptr::null::<u8>(); R]);
        for r in 0..R {
            rows[r] = a.rows.row(j + r);
            next[r] = a.rows.row((j + R + r).min(a.rows.count - 1));
        }
        for s in 0..cols / step {
            for r in 0..R {
                w[r] = V::pair::<D>(rows[r].add(s * bytes));
                if t == 0 {
                    // Hardware prefetch starts anew with every row.
                    let mut line = 0;
                    while line < bytes {
                        prefetch(next[r].wrapping_add(s * bytes + line), false);
                        line += 64;
                    }
                }
            }
            add::<V, R, M>(w, x.add(s * M * step), &mut sums);
        }
        let whole = cols / step;
        if whole * step < cols {
            for r in 0..R {
                w[r] = V::pair_part::<D>(rows[r].add(whole * bytes), cols - whole * step);
            }
            add::<V, R, M>(w, x.add(whole * M * step), &mut sums);
        }
        for m in 0..M {
            let mut four = [V::zero(); 4];
            for r in 0..R {
                four[r] = sums[r][m];
            }
            let four = V::sum4(four);
            for r in 0..R {
                *a.out.add((t + m) * a.out_stride + j + r) = four[r];
            }
        }
    }
}

/// `R` rows from `j` on by all activations.
///
/// # Safety
/// See [`RowsDotFn`](super::RowsDotFn); the rows must exist, x be arranged in groups of so many; the tier's features.
#[inline(always)]
unsafe fn strip<V: Vector, const D: u8, const R: usize>(a: &RowsDot<Rows>, j: usize, group: usize) {
    let mut x: *const f32 = a.arranged.cast();
    let padded = a.rows.cols.next_multiple_of(2 * V::LANES);
    for t in (0..a.m).step_by(group) {
        let here = group.min(a.m - t);
        // SAFETY: the contract is the caller's.
        unsafe {
            match here {
                1 => tile::<V, D, R, 1>(a, j, t, x),
                2 => tile::<V, D, R, 2>(a, j, t, x),
                3 => tile::<V, D, R, 3>(a, j, t, x),
                4 => tile::<V, D, R, 4>(a, j, t, x),
                _ => tile::<V, D, R, GROUP>(a, j, t, x),
            }
        }
        x = x.wrapping_add(here * padded);
    }
}

/// All rows, `R` at a time, by all activations, in groups of about the same size.
///
/// # Safety
/// See [`RowsDotFn`](super::RowsDotFn); the tier's features.
#[inline(always)]
pub(super) unsafe fn dot<V: Vector, const D: u8, const R: usize>(a: &RowsDot<Rows>) {
    let group = a.m.div_ceil(a.m.div_ceil(GROUP));
    let mut j = 0;
    // SAFETY: the contract is the caller's; rows are in range.
    unsafe {
        arrange::<V, D>(a, group);
        while j + R <= a.rows.count {
            strip::<V, D, R>(a, j, group);
            j += R;
        }
        while j < a.rows.count {
            strip::<V, D, 1>(a, j, group);
            j += 1;
        }
    }
}
