//! `dot_int8` with AVX512-VNNI.

use super::{DotInt8, FLUSH};
use crate::rows::int16::{quantize_apart, quantize_bytes};
use crate::simd::avx512::upto32;
use crate::simd::{prefetch, vectorised};
use std::arch::x86_64::*;

/// Codes of one vector, widened.
const LANES: usize = 32;
/// Activation rows of the widest tile.
const TILE: usize = 8;

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
                    if i.is_multiple_of(64) {
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

/// All rows by `M` activations, `R` rows at a time.
///
/// # Safety
/// See [`DotInt8Fn`](super::DotInt8Fn); activations `t..t + M` must exist; AVX512-VNNI.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
unsafe fn strip<const R: usize, const M: usize>(a: &DotInt8, t: usize) {
    let mut j = 0;
    // SAFETY: the contract is the caller's; rows are in range.
    unsafe {
        while j + R <= a.rows.count {
            tile::<R, M>(a, j, t);
            j += R;
        }
        while j < a.rows.count {
            tile::<1, M>(a, j, t);
            j += 1;
        }
    }
}

/// # Safety
/// See [`DotInt8Fn`](super::DotInt8Fn); AVX512-VNNI.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
pub(crate) unsafe fn dot_int8_avx512(a: &DotInt8) {
    for t in (0..a.m).step_by(TILE) {
        // SAFETY: the contract is the caller's; each call covers activations that exist.
        unsafe {
            match a.m - t {
                1 => strip::<8, 1>(a, t),
                2 => strip::<8, 2>(a, t),
                3 => strip::<6, 3>(a, t),
                4 => strip::<6, 4>(a, t),
                5 => strip::<4, 5>(a, t),
                6 => strip::<4, 6>(a, t),
                7 => strip::<3, 7>(a, t),
                _ => strip::<3, TILE>(a, t),
            }
        }
    }
}
