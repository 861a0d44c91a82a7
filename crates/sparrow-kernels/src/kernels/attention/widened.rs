//! The products of tiled attention in `f32`: keys and values of any type are widened once per tile.
//!
//! Heads are padded to pairs of vectors and their elements are in the order in which pairs are widened ([`place`]), in
//! queries, keys, values and sums alike. Queries are packed `[padded, STRIP]`, keys `[key, padded]`, values
//! `[padded / LANES, key, LANES]`; weights are used as they are.

use super::tiled::{KEYS, Lanes, Rows, STEP, STRIP};
use crate::dtype::layout::int8_scale;
use crate::dtype::{I8, code_size};
use crate::simd::vector::{Vector, place};
use std::ops::Range;

/// Elements of a head with its padding; sums have room for as many.
#[inline(always)]
fn padded<X: Vector>(head_dim: usize) -> usize {
    head_dim.next_multiple_of(2 * X::LANES)
}

/// Bytes of a packed strip, and of the packed keys, values and weights of a tile.
pub(super) fn sizes<X: Vector>(head_dim: usize) -> [usize; 4] {
    let padded = padded::<X>(head_dim);
    [padded * size_of::<Lanes>(), KEYS * padded * 4, KEYS * padded * 4, 0]
}

/// # Safety
/// See [`Engine::pack_queries`](super::tiled::Engine::pack_queries).
#[inline(always)]
pub(super) unsafe fn pack_queries<X: Vector, const D: u8>(queries: &[*const f32], head_dim: usize, to: *mut u8) {
    let padded = padded::<X>(head_dim);
    // SAFETY: the strip has `padded` lanes.
    let to = unsafe { std::slice::from_raw_parts_mut(to.cast::<Lanes>(), padded) };
    to.as_flattened_mut().fill(0.0);
    for (lane, &query) in queries.iter().enumerate() {
        for i in 0..head_dim {
            // SAFETY: a query has head_dim values.
            to[element::<X, D>(i)][lane] = unsafe { *query.add(i) };
        }
    }
}

/// Where element `i` of a head is packed.
#[inline(always)]
fn element<X: Vector, const D: u8>(i: usize) -> usize {
    let pair = i / (2 * X::LANES) * (2 * X::LANES);
    pair + place::<D>(i - pair, X::LANES)
}

/// Widens rows and their padding; vector `i` of row `j` goes to `j * row + i * vector` values after `to`.
///
/// # Safety
/// See [`Engine::pack_keys`](super::tiled::Engine::pack_keys); all of these must be writable.
#[inline(always)]
pub(super) unsafe fn widen<X: Vector, const D: u8>(
    rows: &Rows,
    to: *mut f32,
    [row, vector]: [usize; 2],
    scales: &mut [f32; KEYS],
) {
    let (step, d) = (2 * X::LANES, rows.head_dim);
    for j in 0..rows.count.next_multiple_of(STEP) {
        for i in (0..d).step_by(step) {
            // SAFETY: row j has d elements; the caller vouches for `to`.
            unsafe {
                let from = rows.first.wrapping_add(j * rows.row_bytes + i * code_size(D));
                let v = if j >= rows.count {
                    [X::zero(); 2]
                } else if i + step <= d {
                    X::pair::<D>(from)
                } else {
                    X::pair_part::<D>(from, d - i)
                };
                let to = to.add(j * row + i / X::LANES * vector);
                X::store(to, v[0]);
                X::store(to.add(vector), v[1]);
            }
        }
        if D == I8 && j < rows.count {
            // SAFETY: as above.
            scales[j] = unsafe { int8_scale(rows.first.add(j * rows.row_bytes), d) };
        }
    }
}

/// Scores of `R` keys at a time by `V` vectors of queries.
///
/// # Safety
/// See [`Engine::scores`](super::tiled::Engine::scores); `V * LANES` is `STRIP`, and `R` divides `STEP`.
#[inline(always)]
pub(super) unsafe fn scores<X: Vector, const R: usize, const V: usize>(
    q: *const f32,
    keys: *const f32,
    head_dim: usize,
    range: Range<usize>,
    scores: *mut f32,
) {
    let padded = padded::<X>(head_dim);
    let mut key = range.start;
    while key < range.end {
        // SAFETY: the packed strip has `padded` lanes, R keys from here on have `padded` values, and scores as many
        // lanes.
        unsafe {
            let mut sums = [[X::zero(); V]; R];
            let rows = keys.add(key * padded);
            for i in 0..padded {
                let mut x = [X::zero(); V];
                for v in 0..V {
                    x[v] = X::load(q.add(i * STRIP + v * X::LANES));
                }
                for r in 0..R {
                    let k = X::splat(*rows.add(r * padded + i));
                    for v in 0..V {
                        sums[r][v] = X::fma(k, x[v], sums[r][v]);
                    }
                }
            }
            for r in 0..R {
                for v in 0..V {
                    X::store(scores.add((key + r) * STRIP + v * X::LANES), sums[r][v]);
                }
            }
        }
        key += R;
    }
}

/// Sums of `R` head elements at a time by `V` vectors of queries.
///
/// # Safety
/// See [`Engine::accumulate`](super::tiled::Engine::accumulate); `V * LANES` is `STRIP`, and `R` divides `LANES`.
#[inline(always)]
pub(super) unsafe fn accumulate<X: Vector, const R: usize, const V: usize>(
    weights: *const f32,
    values: *const f32,
    head_dim: usize,
    range: Range<usize>,
    sums: *mut f32,
) {
    let mut i = 0;
    while i < padded::<X>(head_dim) {
        // SAFETY: values have LANES elements per key and column, weights STRIP per key, sums STRIP per padded element.
        unsafe {
            let column = values.add(i / X::LANES * KEYS * X::LANES + i % X::LANES);
            let to = sums.add(i * STRIP);
            let mut acc = [[X::zero(); V]; R];
            for r in 0..R {
                for v in 0..V {
                    acc[r][v] = X::load(to.add(r * STRIP + v * X::LANES));
                }
            }
            for key in range.start..range.end {
                let mut w = [X::zero(); V];
                for v in 0..V {
                    w[v] = X::load(weights.add(key * STRIP + v * X::LANES));
                }
                for r in 0..R {
                    let value = X::splat(*column.add(key * X::LANES + r));
                    for v in 0..V {
                        acc[r][v] = X::fma(value, w[v], acc[r][v]);
                    }
                }
            }
            for r in 0..R {
                for v in 0..V {
                    X::store(to.add(r * STRIP + v * X::LANES), acc[r][v]);
                }
            }
        }
        i += R;
    }
}

/// # Safety
/// See [`Engine::finish`](super::tiled::Engine::finish).
#[inline(always)]
pub(super) unsafe fn finish<X: Vector, const D: u8>(sums: &[Lanes], shares: &Lanes, head_dim: usize, out: &[*mut f32]) {
    for (lane, &out) in out.iter().enumerate() {
        for i in 0..head_dim {
            // SAFETY: head_dim values are writable.
            unsafe { *out.add(i) = sums[element::<X, D>(i)][lane] * shares[lane] };
        }
    }
}

/// Defines the engine and the kernel of one tier.
macro_rules! widened {
    ($features:literal, $vector:ty, $rows:literal, $vectors:literal) => {
        /// Elements of the type whose discriminant is `D`.
        struct Widened<const D: u8>;

        // SAFETY: the sizes are those of `sizes`; the methods are written for them.
        unsafe impl<const D: u8> Engine for Widened<D> {
            fn sizes(head_dim: usize) -> [usize; 4] {
                widened::sizes::<$vector>(head_dim)
            }
            #[inline]
            #[target_feature(enable = $features)]
            unsafe fn pack_queries(queries: &[*const f32], head_dim: usize, to: *mut u8) {
                // SAFETY: the contract is the caller's; so below.
                unsafe { widened::pack_queries::<$vector, D>(queries, head_dim, to) }
            }
            #[inline]
            #[target_feature(enable = $features)]
            unsafe fn pack_keys(rows: &Rows, to: *mut u8, scales: &mut [f32; KEYS]) {
                let row = rows.head_dim.next_multiple_of(2 * <$vector>::LANES);
                // SAFETY: as above.
                unsafe { widened::widen::<$vector, D>(rows, to.cast(), [row, <$vector>::LANES], scales) }
            }
            #[inline]
            #[target_feature(enable = $features)]
            unsafe fn pack_values(rows: &Rows, to: *mut u8, scales: &mut [f32; KEYS]) {
                let lanes = <$vector>::LANES;
                // SAFETY: as above.
                unsafe { widened::widen::<$vector, D>(rows, to.cast(), [lanes, KEYS * lanes], scales) }
            }
            #[inline]
            #[target_feature(enable = $features)]
            unsafe fn scores(q: *const u8, keys: *const u8, d: usize, range: Range<usize>, to: &mut [Lanes; KEYS]) {
                let (q, keys, to) = (q.cast(), keys.cast(), to.as_mut_ptr().cast());
                // SAFETY: as above.
                unsafe { widened::scores::<$vector, $rows, $vectors>(q, keys, d, range, to) }
            }
            #[inline]
            #[target_feature(enable = $features)]
            unsafe fn weigh(softmax: &Softmax, strip: &mut Strip, scores: &mut [Lanes; KEYS]) {
                tiled::weigh(softmax, strip, scores)
            }
            #[inline]
            #[target_feature(enable = $features)]
            unsafe fn shrink(sums: &mut [Lanes], by: &Lanes) {
                tiled::shrink(sums, by)
            }
            #[inline]
            #[target_feature(enable = $features)]
            unsafe fn accumulate(
                weights: &[Lanes; KEYS],
                _: *mut u8,
                values: *const u8,
                d: usize,
                range: Range<usize>,
                sums: &mut [Lanes],
            ) {
                let (weights, values, sums) = (weights.as_ptr().cast(), values.cast(), sums.as_mut_ptr().cast());
                // SAFETY: as above.
                unsafe { widened::accumulate::<$vector, $rows, $vectors>(weights, values, d, range, sums) }
            }
            #[inline]
            #[target_feature(enable = $features)]
            unsafe fn finish(sums: &[Lanes], shares: &Lanes, head_dim: usize, out: &[*mut f32]) {
                // SAFETY: as above.
                unsafe { widened::finish::<$vector, D>(sums, shares, head_dim, out) }
            }
        }
    };
}
pub(super) use widened;
