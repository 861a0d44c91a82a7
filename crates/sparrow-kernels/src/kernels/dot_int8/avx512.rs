//! `dot_int8` with AVX512-VNNI.

use super::DotInt8;
use crate::dtype::quantized::quantize_int8;
use crate::simd::avx512::prefetch;
use crate::simd::vectorised;
use std::arch::x86_64::*;

/// Codes of one vector.
const LANES: usize = 64;
/// Activation rows of the widest tile.
const TILE: usize = 8;

vectorised! { "avx512f,avx512bw,avx512vl,avx512dq,fma":
    quantize_avx512 = quantize_int8, (x: &[f32], codes: &mut [u8]) -> (f32, i32);
}

/// `R` rows by `M` activations.
///
/// The instruction multiplies unsigned by signed: w + 128, which is w with its sign bit flipped, then 128 · Σ x is
/// taken off.
///
/// # Safety
/// See [`DotInt8Fn`](super::DotInt8Fn); rows `j..j + R` and activations `t..t + M` must exist; AVX512-VNNI.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
unsafe fn tile<const R: usize, const M: usize>(a: &DotInt8, j: usize, t: usize) {
    let mut sums = [[_mm512_setzero_si512(); M]; R];
    let (cols, flip) = (a.rows.cols, _mm512_set1_epi8(-128));
    // SAFETY: loads of a row are masked to its codes; x is padded.
    unsafe {
        let rows: [*const u8; R] = std::array::from_fn(|r| a.rows.row(j + r));
        let next: [*const u8; R] = std::array::from_fn(|r| a.rows.row((j + R + r).min(a.rows.count - 1)));
        for i in (0..cols).step_by(LANES) {
            let mut w = [_mm512_setzero_si512(); R];
            for r in 0..R {
                w[r] = if i + LANES <= cols {
                    _mm512_loadu_si512(rows[r].add(i).cast())
                } else {
                    _mm512_maskz_loadu_epi8((1 << (cols - i)) - 1, rows[r].add(i).cast())
                };
                w[r] = _mm512_xor_si512(w[r], flip);
                prefetch(next[r].wrapping_add(i), false);
            }
            for m in 0..M {
                let x = _mm512_loadu_si512(a.x.codes(t + m).add(i).cast());
                for r in 0..R {
                    sums[r][m] = _mm512_dpbusd_epi32(sums[r][m], w[r], x);
                }
            }
        }
        for m in 0..M {
            let excess = a.x.sum(t + m).wrapping_mul(128);
            for r in 0..R {
                let sum = _mm512_reduce_add_epi32(sums[r][m]).wrapping_sub(excess);
                a.write(t + m, j + r, rows[r], sum);
            }
        }
    }
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
