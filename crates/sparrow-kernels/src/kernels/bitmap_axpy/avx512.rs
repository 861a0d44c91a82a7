//! `bitmap_axpy` with AVX-512 and VBMI2.

use super::BitmapAxpy;
use crate::dtype::{BF16, F16, F32, I8};
use crate::simd::avx512::{LANES, upto16};
use crate::simd::avx512_bitmap::*;
use crate::simd::prefetch;
use std::arch::x86_64::*;

/// Rows that are added together.
const ROWS: usize = 8;
/// Activations whose coefficients are gathered at once.
const TILE: usize = 8;

/// Adds `R` rows, row `j` of the set and others `apart`, for activations `t0..t0 + tile`.
///
/// # Safety
/// See [`BitmapAxpyFn`](super::BitmapAxpyFn); rows and activations must exist, `tile <= TILE`, and unless `NEAR_END` a
/// vector must be readable after the rows' last elements; AVX-512 with VBMI2.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi2,popcnt")]
unsafe fn group<const D: u8, const R: usize, const NEAR_END: bool>(
    a: &BitmapAxpy,
    (j, apart): (usize, usize),
    (t0, tile): (usize, usize),
) {
    let cols = a.rows.cols;
    // Pairs of bf16 elements are widened apart; these put sums in order.
    let low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    let high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
    let mut coefficients = [[0.0f32; R]; TILE];
    // SAFETY: rows and activations are in range; columns stay below cols, where the masks of out end.
    unsafe {
        for t in 0..tile {
            for r in 0..R {
                let place = j + r * apart;
                let column = if a.columns.is_null() { place } else { *a.columns.add(place) as usize };
                let scale = if D == I8 { a.rows.scale(place) } else { 1.0 };
                coefficients[t][r] = *a.a.add((t0 + t) * a.a_stride + column) * scale;
            }
        }
        let rows: [_; R] = std::array::from_fn(|r| a.rows.row(j + r * apart));
        let (masks, mut values) = (rows.map(|row| row.0), rows.map(|row| row.1));
        let next_rows: [_; R] = std::array::from_fn(|r| a.rows.row((j + r * apart + 1).min(a.rows.count - 1)));
        let ahead: [usize; R] = std::array::from_fn(|r| next_rows[r].1.addr().wrapping_sub(values[r].addr()));
        for line in (0..cols).step_by(LINE) {
            let lines = mask_lines(a.rows.mask_bytes, masks, next_rows.map(|row| row.0), line);
            for step in 0..(cols - line).min(LINE).div_ceil(STEP) {
                let mut w = [[_mm512_setzero_ps(); 2]; R];
                for r in 0..R {
                    prefetch(values[r].wrapping_add(ahead[r]), false);
                    w[r] = next::<D>(lines[r].0[step], &mut values[r], NEAR_END);
                }
                let c = line + step * STEP;
                let (first, second) = (upto16(cols - c), upto16((cols - c).saturating_sub(LANES)));
                for (t, k) in coefficients[..tile].iter().enumerate() {
                    let mut sums = [_mm512_setzero_ps(); 2];
                    for r in 0..R {
                        let k = _mm512_set1_ps(k[r]);
                        sums = [_mm512_fmadd_ps(k, w[r][0], sums[0]), _mm512_fmadd_ps(k, w[r][1], sums[1])];
                    }
                    if D == BF16 {
                        sums = [
                            _mm512_permutex2var_ps(sums[0], low, sums[1]),
                            _mm512_permutex2var_ps(sums[0], high, sums[1]),
                        ];
                    }
                    let at = a.out.add((t0 + t) * cols + c);
                    let next = at.wrapping_add(LANES);
                    _mm512_mask_storeu_ps(at, first, _mm512_add_ps(_mm512_maskz_loadu_ps(first, at), sums[0]));
                    _mm512_mask_storeu_ps(next, second, _mm512_add_ps(_mm512_maskz_loadu_ps(second, next), sums[1]));
                }
            }
        }
    }
}

/// # Safety
/// See [`BitmapAxpyFn`](super::BitmapAxpyFn); AVX-512 with VBMI2.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi2,popcnt")]
unsafe fn bitmap_axpy<const D: u8>(a: &BitmapAxpy) {
    // Rows far apart, each followed by its neighbour, as in `bitmap_dot`.
    let apart = a.rows.count / ROWS;
    for t in (0..a.m).step_by(TILE) {
        let tokens = (t, TILE.min(a.m - t));
        // SAFETY: the contract is the caller's; rows and activations are in range.
        unsafe {
            for j in 0..apart {
                if (0..ROWS).any(|r| a.rows.near_end(j + r * apart)) {
                    group::<D, ROWS, true>(a, (j, apart), tokens);
                } else {
                    group::<D, ROWS, false>(a, (j, apart), tokens);
                }
            }
            for j in ROWS * apart..a.rows.count {
                group::<D, 1, true>(a, (j, 0), tokens);
            }
        }
    }
}

macro_rules! kernels {
    ($($name:ident: $dtype:expr;)*) => {$(
        /// # Safety
        /// See [`BitmapAxpyFn`](super::BitmapAxpyFn); AVX-512 with VBMI2.
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi2,popcnt")]
        pub(crate) unsafe fn $name(a: &BitmapAxpy) {
            // SAFETY: the contract is the caller's.
            unsafe { bitmap_axpy::<{ $dtype }>(a) }
        }
    )*};
}

kernels! {
    bitmap_axpy_f32_avx512: F32;
    bitmap_axpy_f16_avx512: F16;
    bitmap_axpy_bf16_avx512: BF16;
    bitmap_axpy_i8_avx512: I8;
}
