//! `dot_rows` with AVX-512.

use super::{DotRows, RowsDot, rearranged};
use crate::dtype::{BF16, F16, F32, code_size};
use crate::rows::Rows;
use crate::simd::avx512::*;
use crate::simd::prefetch;
use std::arch::x86_64::*;

/// Activation rows of the widest tile.
const TILE: usize = 8;
/// Values of x that one pass over the rows covers: 32 KiB, so that they stay in L1 while the rows stream past.
const X_BLOCK: usize = 8 * 1024;

/// Elements `from..to` of `R` rows by `M` activations: `R * M` vectors of partial sums.
///
/// # Safety
/// `rows` must be readable, `x` too up to element `to` (`M` rows of x), `out` writable at `[M, R]`; `next`, the rows
/// of the following call, are only prefetched and may be any address; AVX-512.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
unsafe fn tile<const D: u8, const R: usize, const M: usize>(
    [rows, next]: [[*const u8; R]; 2],
    (from, to): (usize, usize),
    x: *const f32,
    x_stride: usize,
    out: *mut f32,
    out_stride: usize,
) {
    let mut sums = [[_mm512_setzero_ps(); M]; R];
    let full = from + (to - from) / LANES * LANES;
    // SAFETY: every access is below `to` in a row of W or x, or below [M, R] in out, as the caller guarantees.
    unsafe {
        let mut i = from;
        while i < full {
            let mut w = [_mm512_setzero_ps(); R];
            for r in 0..R {
                w[r] = load::<D>(rows[r].add(i * code_size(D)));
                // Once per line. Hardware prefetch alone stops at the end of every row: 10 % slower for one activation,
                // 30 % for eight.
                if (i * code_size(D)).is_multiple_of(64) {
                    prefetch(next[r].wrapping_add(i * code_size(D)), false);
                }
            }
            for t in 0..M {
                let v = _mm512_loadu_ps(x.add(t * x_stride + i));
                for r in 0..R {
                    sums[r][t] = _mm512_fmadd_ps(w[r], v, sums[r][t]);
                }
            }
            i += LANES;
        }
        if full < to {
            let mask = first(to - full);
            for r in 0..R {
                let w = load_masked::<D>(mask, rows[r].add(full * code_size(D)));
                for t in 0..M {
                    let v = _mm512_maskz_loadu_ps(mask, x.add(t * x_stride + full));
                    sums[r][t] = _mm512_fmadd_ps(w, v, sums[r][t]);
                }
            }
        }
        for t in 0..M {
            for r in 0..R {
                let to = out.add(t * out_stride + r);
                let sum = _mm512_reduce_add_ps(sums[r][t]);
                *to = if from > 0 { *to + sum } else { sum };
            }
        }
    }
}

/// All rows by `M` activations, `R` rows at a time; elements `from..to` of every row.
///
/// # Safety
/// See [`DotRowsFn`](super::DotRowsFn); `from <= to <= cols`, and activation rows `t..t + M` must exist.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
unsafe fn strip<const D: u8, const R: usize, const M: usize>(a: &DotRows, t: usize, from: usize, to: usize) {
    // SAFETY: rows j + r < count, elements from..to of a row, activations t..t + M of m.
    unsafe {
        let x = a.x.add(t * a.x_stride);
        let out = a.out.add(t * a.out_stride);
        let mut j = 0;
        while j + R <= a.rows.count {
            let rows = std::array::from_fn(|r| a.rows.row(j + r));
            let next = std::array::from_fn(|r| a.rows.row((j + R + r).min(a.rows.count - 1)));
            tile::<D, R, M>([rows, next], (from, to), x, a.x_stride, out.add(j), a.out_stride);
            j += R;
        }
        while j < a.rows.count {
            let rows = [a.rows.row(j)];
            let next = [a.rows.row((j + 1).min(a.rows.count - 1))];
            tile::<D, 1, M>([rows, next], (from, to), x, a.x_stride, out.add(j), a.out_stride);
            j += 1;
        }
    }
}

/// # Safety
/// See [`DotRowsFn`](super::DotRowsFn); AVX-512.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
unsafe fn dot_rows<const D: u8>(a: &DotRows) {
    let block = X_BLOCK / a.m.clamp(1, TILE);
    let mut from = 0;
    loop {
        let to = a.rows.cols.min(from + block);
        let mut t = 0;
        while t < a.m {
            let tile = TILE.min(a.m - t);
            // The widest tiles that leave registers for the rows and x: as many rows at once as possible, since each
            // loaded vector of x then serves more of them.
            // SAFETY: the contract is the caller's; each call covers activations that exist.
            unsafe {
                match tile {
                    1 => strip::<D, 8, 1>(a, t, from, to),
                    2 => strip::<D, 8, 2>(a, t, from, to),
                    3 => strip::<D, 6, 3>(a, t, from, to),
                    4 => strip::<D, 6, 4>(a, t, from, to),
                    5 => strip::<D, 4, 5>(a, t, from, to),
                    6 => strip::<D, 4, 6>(a, t, from, to),
                    7 => strip::<D, 3, 7>(a, t, from, to),
                    _ => strip::<D, 3, TILE>(a, t, from, to),
                }
            }
            t += tile;
        }
        from = to;
        if from == a.rows.cols {
            break;
        }
    }
}

macro_rules! kernels {
    ($($name:ident: $dtype:expr;)*) => {$(
        /// # Safety
        /// See [`DotRowsFn`](super::DotRowsFn); AVX-512.
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
        pub(crate) unsafe fn $name(a: &DotRows) {
            // SAFETY: the contract is the caller's.
            unsafe { dot_rows::<{ $dtype }>(a) }
        }
    )*};
}

kernels! {
    dot_rows_f32_avx512: F32;
    dot_rows_f16_avx512: F16;
    dot_rows_bf16_avx512: BF16;
}

macro_rules! rearranged {
    ($($name:ident: $dtype:expr;)*) => {$(
        /// # Safety
        /// See [`RowsDotFn`](super::RowsDotFn); AVX-512.
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
        pub(crate) unsafe fn $name(a: &RowsDot<Rows>) {
            // SAFETY: the contract is the caller's.
            unsafe { rearranged::dot::<Avx512, { $dtype }, 4>(a) }
        }
    )*};
}

rearranged! {
    dot_many_f32_avx512: F32;
    dot_many_f16_avx512: F16;
    dot_many_bf16_avx512: BF16;
}
