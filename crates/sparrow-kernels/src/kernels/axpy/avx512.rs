//! `axpy_rows` with AVX-512.

use super::{AxpyRows, TILE};
use crate::dtype::layout::int8_scale;
use crate::dtype::{BF16, F16, F32, I8, code_size};
use crate::simd::avx512::*;
use crate::simd::prefetch;
use std::arch::x86_64::*;
use std::ops::Range;

/// Up to this many columns, and from this many rows on, results stay in registers.
const SHORT: usize = 256;
const STRIPE: usize = 64;

/// Adds `R` rows, from row `j` of the set on, for activations `t0..t0 + tile`.
///
/// # Safety
/// See [`AxpyRowsFn`](super::AxpyRowsFn); `j + R <= count`, `t0 + tile <= m`, `tile <= TILE`; AVX-512.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
unsafe fn group<const D: u8, const R: usize>(a: &AxpyRows, j: usize, t0: usize, tile: usize) {
    let mut coefficients = [[0.0f32; R]; TILE];
    let full = a.cols / LANES * LANES;
    // SAFETY: rows j..j + R are in the set, activations t0..t0 + tile exist, and columns stay below cols.
    unsafe {
        let rows: [*const u8; R] = std::array::from_fn(|r| a.rows.row(j + r));
        for t in 0..tile {
            for r in 0..R {
                coefficients[t][r] = a.coefficient(t0 + t, j + r) * row_scale::<D>(rows[r], a.rows.cols);
            }
        }
        let rows = rows.map(|row| row.add(a.start * code_size(D)));
        // The rows of the next call: hardware prefetch starts anew with every row.
        let next: [*const u8; R] =
            std::array::from_fn(|r| a.rows.row((j + R + r).min(a.rows.count - 1)).add(a.start * code_size(D)));
        let out = a.out.add(t0 * a.out_stride);
        let mut c = 0;
        while c < full {
            let w: [_; R] = load_rows::<D, R>(&rows, c);
            if (c * code_size(D)).is_multiple_of(64) && t0 == 0 {
                for row in next {
                    prefetch(row.wrapping_add(c * code_size(D)), false);
                }
            }
            for (t, k) in coefficients[..tile].iter().enumerate() {
                let at = out.add(t * a.out_stride + c);
                let mut even = _mm512_loadu_ps(at);
                let mut odd = _mm512_setzero_ps();
                for r in 0..R {
                    let k = _mm512_set1_ps(k[r]);
                    if r % 2 == 0 {
                        even = _mm512_fmadd_ps(k, w[r], even);
                    } else {
                        odd = _mm512_fmadd_ps(k, w[r], odd);
                    }
                }
                _mm512_storeu_ps(at, if R > 1 { _mm512_add_ps(even, odd) } else { even });
            }
            c += LANES;
        }
        if full < a.cols {
            let mask = first(a.cols - full);
            for (t, k) in coefficients[..tile].iter().enumerate() {
                let at = out.add(t * a.out_stride + full);
                let mut sum = _mm512_maskz_loadu_ps(mask, at);
                for r in 0..R {
                    let w = load_masked::<D>(mask, rows[r].add(full * code_size(D)));
                    sum = _mm512_fmadd_ps(_mm512_set1_ps(k[r]), w, sum);
                }
                _mm512_mask_storeu_ps(at, mask, sum);
            }
        }
    }
}

/// What multiplies the elements of a row.
///
/// # Safety
/// The row must be readable.
#[inline(always)]
unsafe fn row_scale<const D: u8>(row: *const u8, cols: usize) -> f32 {
    // SAFETY: the contract is the caller's.
    if D == I8 { unsafe { int8_scale(row, cols) } } else { 1.0 }
}

/// One vector of each row at column `c`.
///
/// # Safety
/// A whole vector must be readable there; AVX-512.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
unsafe fn load_rows<const D: u8, const R: usize>(rows: &[*const u8; R], c: usize) -> [__m512; R] {
    let mut w = [_mm512_setzero_ps(); R];
    for r in 0..R {
        // SAFETY: the caller guarantees the vector.
        w[r] = unsafe { load::<D>(rows[r].add(c * code_size(D))) };
    }
    w
}

/// Adds rows `rows` of the set to `V` vectors of columns from `c` on for activations `t..t + M`, the sums in registers.
///
/// # Safety
/// See [`AxpyRowsFn`](super::AxpyRowsFn); the rows, columns and activations must exist; AVX-512.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
unsafe fn column<const D: u8, const V: usize, const M: usize>(a: &AxpyRows, rows: Range<usize>, t: usize, c: usize) {
    // SAFETY: the caller guarantees rows, columns and activations.
    unsafe {
        let out: [*mut f32; M] = std::array::from_fn(|i| a.out.add((t + i) * a.out_stride + c));
        let mut sums = [[_mm512_setzero_ps(); V]; M];
        for i in 0..M {
            for v in 0..V {
                sums[i][v] = _mm512_loadu_ps(out[i].add(v * LANES));
            }
        }
        for j in rows {
            let row = a.rows.row(j);
            let scale = row_scale::<D>(row, a.rows.cols);
            let row = row.add((a.start + c) * code_size(D));
            let mut k = [_mm512_setzero_ps(); M];
            for i in 0..M {
                k[i] = _mm512_set1_ps(a.coefficient(t + i, j) * scale);
            }
            for v in 0..V {
                let w = load::<D>(row.add(v * LANES * code_size(D)));
                for i in 0..M {
                    sums[i][v] = _mm512_fmadd_ps(k[i], w, sums[i][v]);
                }
            }
        }
        for i in 0..M {
            for v in 0..V {
                _mm512_storeu_ps(out[i].add(v * LANES), sums[i][v]);
            }
        }
    }
}

/// Adds the columns that fill vectors of short rows (values of attention): results are loaded and stored once per
/// [`STRIPE`] rows, which stay in L1 for all activations. Returns the columns done.
///
/// # Safety
/// See [`AxpyRowsFn`](super::AxpyRowsFn); AVX-512.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
unsafe fn short_rows<const D: u8>(a: &AxpyRows) -> usize {
    for start in (0..a.rows.count).step_by(STRIPE) {
        let rows = start..a.rows.count.min(start + STRIPE);
        let mut t = 0;
        while t < a.m {
            let tile = if a.m - t >= 4 { 4 } else { a.m - t };
            let mut c = 0;
            while c + LANES <= a.cols {
                let left = (a.cols - c) / LANES;
                let vectors = if left >= 8 && tile < 4 {
                    8
                } else if left >= 4 {
                    4
                } else {
                    1
                };
                let rows = rows.clone();
                // SAFETY: the contract is the caller's; rows, activations and columns are in range.
                unsafe {
                    match (tile, vectors) {
                        (1, 8) => column::<D, 8, 1>(a, rows, t, c),
                        (1, 4) => column::<D, 4, 1>(a, rows, t, c),
                        (1, _) => column::<D, 1, 1>(a, rows, t, c),
                        (2, 8) => column::<D, 8, 2>(a, rows, t, c),
                        (2, 4) => column::<D, 4, 2>(a, rows, t, c),
                        (2, _) => column::<D, 1, 2>(a, rows, t, c),
                        (3, 8) => column::<D, 8, 3>(a, rows, t, c),
                        (3, 4) => column::<D, 4, 3>(a, rows, t, c),
                        (3, _) => column::<D, 1, 3>(a, rows, t, c),
                        (_, 4) => column::<D, 4, 4>(a, rows, t, c),
                        _ => column::<D, 1, 4>(a, rows, t, c),
                    }
                }
                c += vectors * LANES;
            }
            t += tile;
        }
    }
    a.cols / LANES * LANES
}

/// # Safety
/// See [`AxpyRowsFn`](super::AxpyRowsFn); AVX-512.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
unsafe fn axpy_rows<const D: u8>(a: &AxpyRows) {
    let mut a = *a;
    if a.cols <= SHORT && a.rows.count >= STRIPE {
        // SAFETY: the contract is the caller's; what is left are the columns from `done` on.
        unsafe {
            let done = short_rows::<D>(&a);
            (a.start, a.cols, a.out) = (a.start + done, a.cols - done, a.out.add(done));
        }
        if a.cols == 0 {
            return;
        }
    }
    let mut j = 0;
    while j < a.rows.count {
        let rows = if j + 8 <= a.rows.count { 8 } else { 1 };
        let mut t = 0;
        while t < a.m {
            let tile = TILE.min(a.m - t);
            // SAFETY: the contract is the caller's; the rows and activations are in range.
            unsafe {
                if rows == 8 {
                    group::<D, 8>(&a, j, t, tile);
                } else {
                    group::<D, 1>(&a, j, t, tile);
                }
            }
            t += tile;
        }
        j += rows;
    }
}

macro_rules! kernels {
    ($($name:ident: $dtype:expr;)*) => {$(
        /// # Safety
        /// See [`AxpyRowsFn`](super::AxpyRowsFn); AVX-512.
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
        pub(crate) unsafe fn $name(a: &AxpyRows) {
            // SAFETY: the contract is the caller's.
            unsafe { axpy_rows::<{ $dtype }>(a) }
        }
    )*};
}

kernels! {
    axpy_rows_f32_avx512: F32;
    axpy_rows_f16_avx512: F16;
    axpy_rows_bf16_avx512: BF16;
    axpy_rows_i8_avx512: I8;
}
