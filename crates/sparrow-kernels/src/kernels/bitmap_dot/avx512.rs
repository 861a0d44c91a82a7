//! `bitmap_dot` with AVX-512: of 32 bits with its foundation, of 16 with VBMI2.

use super::BitmapDot;
use crate::dtype::{BF16, F16, F32, code_size};
use crate::simd::avx512::{LANES, upto16};
use crate::simd::avx512_bitmap::*;
use crate::simd::prefetch;
use std::arch::x86_64::*;

/// x as [`next`] orders elements, padded with zeros.
///
/// # Safety
/// See [`BitmapDotFn`](super::BitmapDotFn); AVX-512.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
unsafe fn arrange<const D: u8>(a: &BitmapDot) {
    let (cols, padded) = (a.rows.cols, a.rows.cols.next_multiple_of(STEP));
    let evens = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
    let odds = _mm512_or_si512(evens, _mm512_set1_epi32(1));
    for t in 0..a.m {
        for i in (0..padded).step_by(STEP) {
            let left = cols - i;
            // SAFETY: the masks end at the last column of row t of x; the arranged row is padded.
            unsafe {
                let from = a.x.add(t * cols + i);
                let low = _mm512_maskz_loadu_ps(upto16(left), from);
                let high = _mm512_maskz_loadu_ps(upto16(left.saturating_sub(LANES)), from.wrapping_add(LANES));
                let (first, second) = if D == BF16 {
                    (_mm512_permutex2var_ps(low, evens, high), _mm512_permutex2var_ps(low, odds, high))
                } else {
                    (low, high)
                };
                let to = a.arranged.cast::<f32>().add(t * padded + i);
                _mm512_storeu_ps(to, first);
                _mm512_storeu_ps(to.add(LANES), second);
            }
        }
    }
}

/// `R` rows, row `j` of the set and others `apart`, by `M` activations.
///
/// # Safety
/// See [`BitmapDotFn`](super::BitmapDotFn); they must be in the set, `M == m`, x arranged, and unless `NEAR_END` a
/// vector must be readable after the rows' last elements; the features those of the type.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi2,popcnt")]
unsafe fn tile<const D: u8, const R: usize, const M: usize, const NEAR_END: bool>(
    a: &BitmapDot,
    j: usize,
    apart: usize,
) {
    let (cols, padded) = (a.rows.cols, a.rows.cols.next_multiple_of(STEP));
    let mut sums = [[_mm512_setzero_ps(); M]; R];
    // SAFETY: the rows are in the set; x is padded; out is [m, count].
    unsafe {
        let rows: [_; R] = std::array::from_fn(|r| a.rows.row(j + r * apart));
        let (masks, mut values) = (rows.map(|row| row.0), rows.map(|row| row.1));
        // The rows that follow are asked for at the same distance from their beginning.
        let next_rows: [_; R] = std::array::from_fn(|r| a.rows.row((j + r * apart + 1).min(a.rows.count - 1)));
        let ahead: [usize; R] = std::array::from_fn(|r| next_rows[r].1.addr().wrapping_sub(values[r].addr()));
        for line in (0..cols).step_by(LINE) {
            let lines = mask_lines(a.rows.mask_bytes, masks, next_rows.map(|row| row.0), line);
            let x = a.arranged.cast::<f32>().add(line);
            for step in 0..(cols - line).min(LINE).div_ceil(STEP) {
                let mut w = [[_mm512_setzero_ps(); 2]; R];
                for r in 0..R {
                    for part in (0..STEP * code_size(D)).step_by(64) {
                        prefetch(values[r].wrapping_add(ahead[r] + part), false);
                    }
                    w[r] = next::<D>(lines[r].0[step], &mut values[r], NEAR_END);
                }
                for t in 0..M {
                    for half in 0..2 {
                        let x = _mm512_loadu_ps(x.add(t * padded + step * STEP + half * LANES));
                        for r in 0..R {
                            sums[r][t] = _mm512_fmadd_ps(w[r][half], x, sums[r][t]);
                        }
                    }
                }
            }
        }
        for t in 0..M {
            for r in 0..R {
                *a.out.add(t * a.out_stride + j + r * apart) = _mm512_reduce_add_ps(sums[r][t]);
            }
        }
    }
}

/// All rows by `M` activations, `R` rows at a time.
///
/// # Safety
/// See [`BitmapDotFn`](super::BitmapDotFn); `M == m`, x arranged; the features those of the type.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi2,popcnt")]
unsafe fn strip<const D: u8, const R: usize, const M: usize>(a: &BitmapDot) {
    // SAFETY: the contract is the caller's; rows are in range.
    unsafe {
        // Rows far apart, each followed by its neighbour: R streams that go on, as hardware prefetchers like them.
        let apart = a.rows.count / R;
        for j in 0..apart {
            if (0..R).any(|r| a.rows.near_end(j + r * apart)) {
                for r in 0..R {
                    tile::<D, 1, M, true>(a, j + r * apart, 0);
                }
            } else {
                tile::<D, R, M, false>(a, j, apart);
            }
        }
        for j in R * apart..a.rows.count {
            tile::<D, 1, M, true>(a, j, 0);
        }
    }
}

/// # Safety
/// See [`BitmapDotFn`](super::BitmapDotFn); the features those of the type.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi2,popcnt")]
unsafe fn bitmap_dot<const D: u8>(a: &BitmapDot) {
    // The widest tiles that leave registers for the rows and x.
    // SAFETY: the contract is the caller's.
    unsafe {
        arrange::<D>(a);
        match a.m {
            1 => strip::<D, 4, 1>(a),
            2 => strip::<D, 4, 2>(a),
            3 => strip::<D, 4, 3>(a),
            4 => strip::<D, 4, 4>(a),
            5 => strip::<D, 3, 5>(a),
            6 => strip::<D, 3, 6>(a),
            7 => strip::<D, 3, 7>(a),
            _ => strip::<D, 3, 8>(a),
        }
    }
}

macro_rules! kernels {
    ($($name:ident: $dtype:expr;)*) => {$(
        /// # Safety
        /// See [`BitmapDotFn`](super::BitmapDotFn); AVX-512 with VBMI2.
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi2,popcnt")]
        pub(crate) unsafe fn $name(a: &BitmapDot) {
            // SAFETY: the contract is the caller's.
            unsafe { bitmap_dot::<{ $dtype }>(a) }
        }
    )*};
}

kernels! {
    bitmap_dot_f32_avx512: F32;
    bitmap_dot_f16_avx512: F16;
    bitmap_dot_bf16_avx512: BF16;
}
