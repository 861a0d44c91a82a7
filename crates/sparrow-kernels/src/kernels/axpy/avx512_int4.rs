//! The group of `axpy_rows` for int4 weights with AVX-512.

use super::{AxpyRows, TILE};
use crate::simd::avx512::*;
use crate::simd::avx512_int4::*;
use std::arch::x86_64::*;

/// Adds `R` rows, from row `j` of the set on, for activations `t0..t0 + tile`.
///
/// # Safety
/// See [`AxpyRowsFn`](super::AxpyRowsFn); `j + R <= count`, `t0 + tile <= m`, `tile <= TILE`; AVX-512.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
pub(super) unsafe fn group<const D: u8, const R: usize>(a: &AxpyRows, j: usize, t0: usize, tile: usize) {
    let mut coefficients = [[0.0f32; R]; TILE];
    let mut scales = [Scales::default(); R];
    let (cols, end) = (a.rows.cols, a.start + a.cols);
    // SAFETY: rows j..j + R are in the set, activations t0..t0 + tile exist; blocks below `end` exist in the rows,
    // padded, and results are masked to below it.
    unsafe {
        let rows: [*const u8; R] = std::array::from_fn(|r| a.rows.row(j + r));
        let next: [*const u8; R] = std::array::from_fn(|r| a.rows.row((j + R + r).min(a.rows.count - 1)));
        for t in 0..tile {
            for r in 0..R {
                coefficients[t][r] = a.coefficient(t0 + t, j + r);
            }
        }
        let mut c = a.start;
        while c < end {
            let span = c / SPAN * SPAN;
            for r in 0..R {
                scales[r] = Scales::load::<D>(rows[r], cols, span);
                Scales::prefetch::<D>(next[r], cols, span);
            }
            while c < end.min(span + SPAN) {
                let masks = [upto16(end - c), upto16((end - c).saturating_sub(16))];
                let mut w = [[_mm512_setzero_ps(); 2]; R];
                for r in 0..R {
                    w[r] = scales[r].block::<D>(rows[r], c);
                }
                for (t, k) in coefficients[..tile].iter().enumerate() {
                    let at = a.out.add((t0 + t) * a.out_stride).wrapping_add(c - a.start);
                    for (half, &mask) in masks.iter().enumerate() {
                        let at = at.wrapping_add(half * LANES);
                        let mut even = _mm512_maskz_loadu_ps(mask, at);
                        let mut odd = _mm512_setzero_ps();
                        for r in 0..R {
                            let k = _mm512_set1_ps(k[r]);
                            if r % 2 == 0 {
                                even = _mm512_fmadd_ps(k, w[r][half], even);
                            } else {
                                odd = _mm512_fmadd_ps(k, w[r][half], odd);
                            }
                        }
                        _mm512_mask_storeu_ps(at, mask, if R > 1 { _mm512_add_ps(even, odd) } else { even });
                    }
                }
                c += 32;
            }
        }
    }
}
