//! `bitmap_dot_int8` with AVX512-VNNI and VBMI2.

use super::BitmapDotInt8;
use crate::kernels::dot_int8::FLUSH;
use crate::kernels::dot_int8::avx512::total;
use crate::simd::avx512_bitmap::{LINE, mask_lines, place_8_bits};
use crate::simd::prefetch;
use std::arch::x86_64::*;

/// Codes of one vector.
const LANES: usize = 64;

/// `R` rows, row `j` of the set and others `apart`, by `M` activations; the products as in
/// [`dot_int8`](crate::kernels::dot_int8::avx512).
///
/// # Safety
/// See [`BitmapDotInt8Fn`](super::BitmapDotInt8Fn); they must be in the set, `M == m`, and unless `NEAR_END` a vector
/// must be readable after the rows' last elements; AVX512-VNNI and VBMI2.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi2,popcnt")]
unsafe fn tile<const R: usize, const M: usize, const NEAR_END: bool>(a: &BitmapDotInt8, j: usize, apart: usize) {
    let mut sums = [[_mm512_setzero_si512(); M]; R];
    let mut totals = [[0i64; M]; R];
    let cols = a.rows.cols;
    // SAFETY: the rows are in the set; x is padded; out is [m, count].
    unsafe {
        let rows: [_; R] = std::array::from_fn(|r| a.rows.row(j + r * apart));
        let (masks, mut values) = (rows.map(|row| row.0), rows.map(|row| row.1));
        let next_rows: [_; R] = std::array::from_fn(|r| a.rows.row((j + r * apart + 1).min(a.rows.count - 1)));
        let ahead: [usize; R] = std::array::from_fn(|r| next_rows[r].1.addr().wrapping_sub(values[r].addr()));
        for line in (0..cols).step_by(LINE) {
            let lines = mask_lines(a.rows.mask_bytes, masks, next_rows.map(|row| row.0), line);
            for step in 0..(cols - line).min(LINE).div_ceil(LANES) {
                let mut w = [[_mm512_setzero_si512(); 2]; R];
                for r in 0..R {
                    prefetch(values[r].wrapping_add(ahead[r]), false);
                    let bits = u64::from(lines[r].0[2 * step]) | u64::from(lines[r].0[2 * step + 1]) << 32;
                    let codes = place_8_bits(bits, &mut values[r], NEAR_END);
                    w[r] = [
                        _mm512_cvtepi8_epi16(_mm512_castsi512_si256(codes)),
                        _mm512_cvtepi8_epi16(_mm512_extracti64x4_epi64::<1>(codes)),
                    ];
                }
                for t in 0..M {
                    let x = a.x.codes(t).add(line + step * LANES);
                    for half in 0..2 {
                        let x = _mm512_load_si512(x.add(half * LANES / 2).cast());
                        for r in 0..R {
                            sums[r][t] = _mm512_dpwssd_epi32(sums[r][t], w[r][half], x);
                        }
                    }
                }
            }
            // Before lanes overflow.
            if (line + LINE).is_multiple_of(FLUSH) || line + LINE >= cols {
                for r in 0..R {
                    for t in 0..M {
                        totals[r][t] += total(sums[r][t]);
                        sums[r][t] = _mm512_setzero_si512();
                    }
                }
            }
        }
        for t in 0..M {
            for r in 0..R {
                let scale = a.rows.scale(j + r * apart) * a.x.scale(t);
                *a.out.add(t * a.out_stride + j + r * apart) = totals[r][t] as f32 * scale;
            }
        }
    }
}

/// All rows by `M` activations, `R` rows at a time.
///
/// # Safety
/// See [`BitmapDotInt8Fn`](super::BitmapDotInt8Fn); `M == m`; AVX512-VNNI and VBMI2.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi2,popcnt")]
unsafe fn strip<const R: usize, const M: usize>(a: &BitmapDotInt8) {
    // SAFETY: the contract is the caller's; rows are in range.
    unsafe {
        // Rows far apart, each followed by its neighbour: R streams that go on, as hardware prefetchers like them.
        let apart = a.rows.count / R;
        for j in 0..apart {
            if (0..R).any(|r| a.rows.near_end(j + r * apart)) {
                for r in 0..R {
                    tile::<1, M, true>(a, j + r * apart, 0);
                }
            } else {
                tile::<R, M, false>(a, j, apart);
            }
        }
        for j in R * apart..a.rows.count {
            tile::<1, M, true>(a, j, 0);
        }
    }
}

/// # Safety
/// See [`BitmapDotInt8Fn`](super::BitmapDotInt8Fn); AVX512-VNNI and VBMI2.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512vbmi2,popcnt")]
pub(crate) unsafe fn bitmap_dot_int8_avx512(a: &BitmapDotInt8) {
    // SAFETY: the contract is the caller's.
    unsafe {
        match a.m {
            1 => strip::<6, 1>(a),
            2 => strip::<6, 2>(a),
            3 => strip::<6, 3>(a),
            4 => strip::<4, 4>(a),
            5 => strip::<4, 5>(a),
            6 => strip::<3, 6>(a),
            7 => strip::<3, 7>(a),
            _ => strip::<3, 8>(a),
        }
    }
}
