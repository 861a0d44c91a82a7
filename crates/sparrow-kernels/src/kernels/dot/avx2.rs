//! `dot_rows` with AVX2.

use super::{DotRows, RowsDot, rearranged};
use crate::dtype::{BF16, F16, F32, code_size};
use crate::rows::Rows;
use crate::simd::avx2::*;
use crate::simd::prefetch;
use std::arch::x86_64::*;

/// Elements of a row that one pass over several activations covers: four activation rows of it stay in L1.
const K_BLOCK: usize = 1024;
/// Bytes of a row up to which one row after the other, a single stream of memory, is read faster than four at once.
const ONE_STREAM: usize = 2048;
/// Activation rows of the register tile for many activations.
const TILE: usize = 4;

/// Elements `from..to` of `R` rows by `M` activations: `R * M` vectors of partial sums.
///
/// # Safety
/// `rows` must be readable, `next`, the rows of the following call, are only prefetched and may be any address, `x` too up to element `to` (`M` rows of x), `out` writable at `[M, R]`; AVX2.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn tile<const D: u8, const R: usize, const M: usize>(
    [rows, next]: [[*const u8; R]; 2],
    (from, to): (usize, usize),
    x: *const f32,
    x_stride: usize,
    out: *mut f32,
    out_stride: usize,
) {
    let mut sums = [[_mm256_setzero_ps(); M]; R];
    let full = from + (to - from) / LANES * LANES;
    // SAFETY: every access is below `to` in a row of W or x, or below [M, R] in out, as the caller guarantees.
    unsafe {
        let mut i = from;
        while i < full {
            let mut w = [_mm256_setzero_ps(); R];
            for r in 0..R {
                w[r] = load_at::<D>(rows[r], i);
                // Once per line: hardware prefetch starts anew with every row.
                if (i * code_size(D)).is_multiple_of(64) {
                    prefetch(next[r].wrapping_add(i * code_size(D)), false);
                }
            }
            for t in 0..M {
                let v = _mm256_loadu_ps(x.add(t * x_stride + i));
                for r in 0..R {
                    sums[r][t] = _mm256_fmadd_ps(w[r], v, sums[r][t]);
                }
            }
            i += LANES;
        }
        if full < to {
            for r in 0..R {
                let w = load_part_at::<D>(rows[r], full, to - full);
                for t in 0..M {
                    let v = load_part::<F32>(x.add(t * x_stride + full).cast(), to - full);
                    sums[r][t] = _mm256_fmadd_ps(w, v, sums[r][t]);
                }
            }
        }
        for t in 0..M {
            for r in 0..R {
                let to = out.add(t * out_stride + r);
                let sum = sum(sums[r][t]);
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
#[target_feature(enable = "avx2,fma,f16c")]
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
/// See [`DotRowsFn`](super::DotRowsFn); AVX2.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn dot_rows<const D: u8>(a: &DotRows) {
    let block = if a.m > 2 { K_BLOCK } else { a.rows.cols };
    let mut from = 0;
    loop {
        let to = a.rows.cols.min(from + block);
        // SAFETY: the contract is the caller's; each call covers activations that exist.
        unsafe {
            let mut t = 0;
            while t + TILE <= a.m {
                strip::<D, 2, TILE>(a, t, from, to);
                t += TILE;
            }
            match a.m - t {
                0 => {}
                1 if a.rows.cols * code_size(D) <= ONE_STREAM => strip::<D, 1, 1>(a, t, from, to),
                1 => strip::<D, 4, 1>(a, t, from, to),
                2 => strip::<D, 4, 2>(a, t, from, to),
                _ => strip::<D, 2, 3>(a, t, from, to),
            }
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
        /// See [`DotRowsFn`](super::DotRowsFn); AVX2.
        #[target_feature(enable = "avx2,fma,f16c")]
        pub(crate) unsafe fn $name(a: &DotRows) {
            // SAFETY: the contract is the caller's.
            unsafe { dot_rows::<{ $dtype }>(a) }
        }
    )*};
}

kernels! {
    dot_rows_f32_avx2: F32;
    dot_rows_f16_avx2: F16;
    dot_rows_bf16_avx2: BF16;
}

macro_rules! rearranged {
    ($($name:ident: $dtype:expr;)*) => {$(
        /// # Safety
        /// See [`RowsDotFn`](super::RowsDotFn); AVX2.
        #[target_feature(enable = "avx2,fma,f16c")]
        pub(crate) unsafe fn $name(a: &RowsDot<Rows>) {
            // SAFETY: the contract is the caller's.
            unsafe { rearranged::dot::<Avx2, { $dtype }, 2>(a) }
        }
    )*};
}

rearranged! {
    dot_many_f32_avx2: F32;
    dot_many_f16_avx2: F16;
    dot_many_bf16_avx2: BF16;
}
