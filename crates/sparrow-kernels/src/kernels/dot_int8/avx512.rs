//! `dot_int8` with AVX512-VNNI.

use super::{DotInt8, FLUSH};
use crate::rows::int16::{quantize_apart, quantize_bytes};
use crate::simd::avx512::upto32;
use crate::simd::{prefetch, vectorised};
use std::arch::x86_64::*;

/// Codes of one vector, widened.
const LANES: usize = 32;
/// The most activations of a group.
const GROUP: usize = 8;

vectorised! { "avx512f,avx512bw,avx512vl,avx512dq,fma":
    quantize_apart_avx512 = quantize_apart, (x: &[f32], row: &mut [u8]);
    quantize_bytes_avx512 = quantize_bytes, (x: &[f32], row: &mut [u8]);
}

/// `R` rows by `M` activations.
///
/// # Safety
/// See [`DotInt8Fn`](super::DotInt8Fn); rows `j..j + R` and activations `t..t + M` must exist; AVX512-VNNI.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
unsafe fn tile<const R: usize, const M: usize>(a: &DotInt8, j: usize, t: usize) {
    let cols = a.rows.cols;
    let mut totals = [[0i64; M]; R];
    // SAFETY: loads of a row are masked to its codes; x is padded.
    unsafe {
        let rows: [*const u8; R] = std::array::from_fn(|r| a.rows.row(j + r));
        let next: [*const u8; R] = std::array::from_fn(|r| a.rows.row((j + R + r).min(a.rows.count - 1)));
        let x: [*const i16; M] = std::array::from_fn(|m| a.x.codes(t + m));
        for start in (0..cols).step_by(FLUSH) {
            let mut sums = [[_mm512_setzero_si512(); M]; R];
            for i in (start..cols.min(start + FLUSH)).step_by(LANES) {
                let mut w = [_mm512_setzero_si512(); R];
                for r in 0..R {
                    let codes = if i + LANES <= cols {
                        _mm256_loadu_si256(rows[r].add(i).cast())
                    } else {
                        _mm256_maskz_loadu_epi8(upto32(cols - i), rows[r].add(i).cast())
                    };
                    w[r] = _mm512_cvtepi8_epi16(codes);
                    if t == 0 && i.is_multiple_of(64) {
                        prefetch(next[r].wrapping_add(i), false);
                    }
                }
                for m in 0..M {
                    let x = _mm512_load_si512(x[m].add(i).cast());
                    for r in 0..R {
                        sums[r][m] = _mm512_dpwssd_epi32(sums[r][m], w[r], x);
                    }
                }
            }
            for r in 0..R {
                for m in 0..M {
                    totals[r][m] += total(sums[r][m]);
                }
            }
        }
        for m in 0..M {
            for r in 0..R {
                a.write(t + m, j + r, rows[r], totals[r][m]);
            }
        }
    }
}

/// The sum of all lanes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
pub(crate) fn total(v: __m512i) -> i64 {
    let low = _mm512_cvtepi32_epi64(_mm512_castsi512_si256(v));
    _mm512_reduce_add_epi64(_mm512_add_epi64(low, _mm512_cvtepi32_epi64(_mm512_extracti64x4_epi64::<1>(v))))
}

/// All rows, `R` at a time, by all activations, which come in groups of the same size but for the last: the rows stay in
/// L1 until it.
///
/// # Safety
/// See [`DotInt8Fn`](super::DotInt8Fn); sums of `R` rows by a group must fit the registers; AVX512-VNNI.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
unsafe fn strips<const R: usize>(a: &DotInt8, from: usize, group: usize) -> usize {
    let mut j = from;
    while j + R <= a.rows.count {
        for t in (0..a.m).step_by(group) {
            // SAFETY: the contract is the caller's; each call covers rows and activations that exist.
            unsafe {
                match group.min(a.m - t) {
                    1 => tile::<R, 1>(a, j, t),
                    2 => tile::<R, 2>(a, j, t),
                    3 if R <= 6 => tile::<R, 3>(a, j, t),
                    4 if R <= 6 => tile::<R, 4>(a, j, t),
                    5 if R <= 3 => tile::<R, 5>(a, j, t),
                    6 if R <= 3 => tile::<R, 6>(a, j, t),
                    7 if R <= 3 => tile::<R, 7>(a, j, t),
                    _ if R <= 3 => tile::<R, GROUP>(a, j, t),
                    _ => unreachable!("fewer rows for more activations"),
                }
            }
        }
        j += R;
    }
    j
}

/// # Safety
/// See [`DotInt8Fn`](super::DotInt8Fn); AVX512-VNNI.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
pub(crate) unsafe fn dot_int8_avx512(a: &DotInt8) {
    let group = a.m.div_ceil(a.m.div_ceil(GROUP));
    // SAFETY: the contract is the caller's.
    unsafe {
        let j = match group {
            1 | 2 => strips::<8>(a, 0, group),
            3 | 4 => strips::<6>(a, 0, group),
            _ => strips::<3>(a, 0, group),
        };
        strips::<1>(a, j, group);
    }
}
