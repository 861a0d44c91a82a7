//! `axpy_rows` with AVX2.

use super::{AxpyRows, TILE};
use crate::dtype::layout::{int8_scale, int8_scale_at};
use crate::dtype::{BF16, F16, F32, I8, code_size};
use crate::simd::avx2::*;
use crate::simd::prefetch;
use std::arch::x86_64::*;

/// Adds `R` rows, from row `j` of the set on, for activations `t0..t0 + tile`: one, or `T` at most.
///
/// # Safety
/// See [`AxpyRowsFn`](super::AxpyRowsFn); `j + R <= count`, `t0 + tile <= m`, `tile <= T`; AVX2.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn group<const D: u8, const R: usize, const T: usize>(a: &AxpyRows, j: usize, t0: usize, tile: usize) {
    // One activation's coefficients stay in registers.
    let tile = if T == 1 { 1 } else { tile };
    let mut coefficients = [[0.0f32; R]; T];
    let full = a.cols / LANES * LANES;
    // SAFETY: rows j..j + R are in the set, activations t0..t0 + tile exist, and columns stay below cols.
    unsafe {
        let rows: [*const u8; R] = std::array::from_fn(|r| a.rows.row(j + r));
        let next: [*const u8; R] = std::array::from_fn(|r| a.rows.row((j + R + r).min(a.rows.count - 1)));
        for t in 0..tile {
            for r in 0..R {
                let scale = if D == I8 { int8_scale(rows[r], a.rows.cols) } else { 1.0 };
                coefficients[t][r] = a.coefficient(t0 + t, j + r) * scale;
            }
        }
        if D == I8 && t0 == 0 {
            // Scales are wanted before the rest of their rows, and often have a line of their own.
            next.iter().for_each(|next| prefetch(next.wrapping_add(int8_scale_at(a.rows.cols)), false));
        }
        let out = a.out.add(t0 * a.out_stride);
        let mut c = 0;
        while c < full {
            let w: [_; R] = load_rows::<D, R>(&rows, a.start + c);
            // Hardware prefetch starts anew with every row, and knows nothing of which come next.
            let at = (a.start + c) * code_size(D);
            if t0 == 0 && at.is_multiple_of(64) {
                next.iter().for_each(|next| prefetch(next.wrapping_add(at), false));
            }
            for (t, k) in coefficients[..tile].iter().enumerate() {
                let at = out.add(t * a.out_stride + c);
                let mut even = _mm256_loadu_ps(at);
                let mut odd = _mm256_setzero_ps();
                for r in 0..R {
                    let k = _mm256_set1_ps(k[r]);
                    if r % 2 == 0 {
                        even = _mm256_fmadd_ps(k, w[r], even);
                    } else {
                        odd = _mm256_fmadd_ps(k, w[r], odd);
                    }
                }
                _mm256_storeu_ps(at, if R > 1 { _mm256_add_ps(even, odd) } else { even });
            }
            c += LANES;
        }
        if full < a.cols {
            let n = a.cols - full;
            for (t, k) in coefficients[..tile].iter().enumerate() {
                let at = out.add(t * a.out_stride + full);
                let mut sum = load_part::<F32>(at.cast(), n);
                for r in 0..R {
                    let w = load_part_at::<D>(rows[r], a.start + full, n);
                    sum = _mm256_fmadd_ps(_mm256_set1_ps(k[r]), w, sum);
                }
                let mut values = [0.0f32; LANES];
                _mm256_storeu_ps(values.as_mut_ptr(), sum);
                std::ptr::copy_nonoverlapping(values.as_ptr(), at, n);
            }
        }
    }
}

/// One vector of each row at column `c`.
///
/// # Safety
/// A whole vector must be readable there; AVX2.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn load_rows<const D: u8, const R: usize>(rows: &[*const u8; R], c: usize) -> [__m256; R] {
    let mut w = [_mm256_setzero_ps(); R];
    for r in 0..R {
        // SAFETY: the caller guarantees the vector.
        w[r] = unsafe { load_at::<D>(rows[r], c) };
    }
    w
}

/// # Safety
/// See [`AxpyRowsFn`](super::AxpyRowsFn); AVX2.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn axpy_rows<const D: u8>(a: &AxpyRows) {
    let mut j = 0;
    while j < a.rows.count {
        let rows = if j + 8 <= a.rows.count { 8 } else { 1 };
        let mut t = 0;
        while t < a.m {
            let tile = TILE.min(a.m - t);
            // SAFETY: the contract is the caller's; the rows and activations are in range.
            unsafe {
                match (rows, tile) {
                    (8, 1) => group::<D, 8, 1>(a, j, t, tile),
                    (8, _) => group::<D, 8, TILE>(a, j, t, tile),
                    _ => group::<D, 1, TILE>(a, j, t, tile),
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
        /// See [`AxpyRowsFn`](super::AxpyRowsFn); AVX2.
        #[target_feature(enable = "avx2,fma,f16c")]
        pub(crate) unsafe fn $name(a: &AxpyRows) {
            // SAFETY: the contract is the caller's.
            unsafe { axpy_rows::<{ $dtype }>(a) }
        }
    )*};
}

kernels! {
    axpy_rows_f32_avx2: F32;
    axpy_rows_f16_avx2: F16;
    axpy_rows_bf16_avx2: BF16;
    axpy_rows_i8_avx2: I8;
}
