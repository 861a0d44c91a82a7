//! `dot_rows` with AVX-512.

use super::DotRows;
use crate::dtype::{BF16, F16, F32, code_size};
use crate::simd::avx512::*;
use std::arch::x86_64::*;

/// Elements of a row that one pass over many activations covers: six activation rows of it stay in L1.
const K_BLOCK: usize = 1024;
/// Activation rows of the register tile for many activations.
const TILE: usize = 6;

/// `R` rows by `M` activations: `R * M` vectors of partial sums.
///
/// # Safety
/// `rows` and `x` must be readable for `k` elements (`M` rows of x), `out` writable at `[M, R]`; AVX-512.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
unsafe fn tile<const D: u8, const R: usize, const M: usize>(
    rows: [*const u8; R],
    k: usize,
    x: *const f32,
    x_stride: usize,
    out: *mut f32,
    out_stride: usize,
    accumulate: bool,
) {
    let mut sums = [[_mm512_setzero_ps(); M]; R];
    let full = k / LANES * LANES;
    // SAFETY: every access is below k in a row of W or x, or below [M, R] in out, as the caller guarantees.
    unsafe {
        let mut i = 0;
        while i < full {
            let mut w = [_mm512_setzero_ps(); R];
            for r in 0..R {
                w[r] = load::<D>(rows[r].add(i * code_size(D)));
            }
            for t in 0..M {
                let v = _mm512_loadu_ps(x.add(t * x_stride + i));
                for r in 0..R {
                    sums[r][t] = _mm512_fmadd_ps(w[r], v, sums[r][t]);
                }
            }
            i += LANES;
        }
        if full < k {
            let mask = first(k - full);
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
                *to = if accumulate { *to + sum } else { sum };
            }
        }
    }
}

/// All rows by `M` activations, `R` rows at a time; elements `from..to` of every row.
///
/// # Safety
/// See [`DotRowsFn`](super::DotRowsFn); `from <= to <= k`, and activation rows `t..t + M` must exist.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
unsafe fn strip<const D: u8, const R: usize, const M: usize>(a: &DotRows, t: usize, from: usize, to: usize) {
    let skip = from * code_size(D);
    // SAFETY: rows j + r < count, elements from..to of k, activations t..t + M of m.
    unsafe {
        let x = a.x.add(t * a.x_stride + from);
        let out = a.out.add(t * a.out_stride);
        let mut j = 0;
        while j + R <= a.rows.count {
            let rows = std::array::from_fn(|r| a.rows.row(j + r).add(skip));
            tile::<D, R, M>(rows, to - from, x, a.x_stride, out.add(j), a.out_stride, from > 0);
            j += R;
        }
        while j < a.rows.count {
            let rows = [a.rows.row(j).add(skip)];
            tile::<D, 1, M>(rows, to - from, x, a.x_stride, out.add(j), a.out_stride, from > 0);
            j += 1;
        }
    }
}

/// All rows by `A + B` activations, four rows at a time: the rows' second use comes from cache, and each pass reads half as
/// many activations as one wide tile would per row.
///
/// # Safety
/// See [`DotRowsFn`](super::DotRowsFn); `A + B <= m`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
unsafe fn two_strips<const D: u8, const A: usize, const B: usize>(a: &DotRows) {
    // SAFETY: rows j..j + 4 < count; activations 0..A and A..A + B of m.
    unsafe {
        let (x, out) = (a.x.add(A * a.x_stride), a.out.add(A * a.out_stride));
        let mut j = 0;
        while j + 4 <= a.rows.count {
            let rows = std::array::from_fn(|r| a.rows.row(j + r));
            tile::<D, 4, A>(rows, a.k, a.x, a.x_stride, a.out.add(j), a.out_stride, false);
            tile::<D, 4, B>(rows, a.k, x, a.x_stride, out.add(j), a.out_stride, false);
            j += 4;
        }
        while j < a.rows.count {
            let rows = [a.rows.row(j)];
            tile::<D, 1, A>(rows, a.k, a.x, a.x_stride, a.out.add(j), a.out_stride, false);
            tile::<D, 1, B>(rows, a.k, x, a.x_stride, out.add(j), a.out_stride, false);
            j += 1;
        }
    }
}

/// # Safety
/// See [`DotRowsFn`](super::DotRowsFn); AVX-512.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
unsafe fn dot_rows<const D: u8>(a: &DotRows) {
    // SAFETY: the contract is the caller's; each call below covers activations that exist.
    unsafe {
        match a.m {
            0 => {}
            1 => strip::<D, 8, 1>(a, 0, 0, a.k),
            2 => strip::<D, 4, 2>(a, 0, 0, a.k),
            3 => strip::<D, 4, 3>(a, 0, 0, a.k),
            4 => strip::<D, 4, 4>(a, 0, 0, a.k),
            5 => strip::<D, 4, 5>(a, 0, 0, a.k),
            6 => strip::<D, 4, TILE>(a, 0, 0, a.k),
            7 => two_strips::<D, 4, 3>(a),
            8 => two_strips::<D, 4, 4>(a),
            _ => {
                let mut from = 0;
                loop {
                    let to = a.k.min(from + K_BLOCK);
                    let mut t = 0;
                    while t + TILE <= a.m {
                        strip::<D, 4, TILE>(a, t, from, to);
                        t += TILE;
                    }
                    match a.m - t {
                        0 => {}
                        1 => strip::<D, 8, 1>(a, t, from, to),
                        2 => strip::<D, 4, 2>(a, t, from, to),
                        3 => strip::<D, 4, 3>(a, t, from, to),
                        4 => strip::<D, 4, 4>(a, t, from, to),
                        _ => strip::<D, 4, 5>(a, t, from, to),
                    }
                    from = to;
                    if from == a.k {
                        break;
                    }
                }
            }
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
