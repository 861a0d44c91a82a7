//! `axpy_rows` of codes with AVX2.

use super::{AxpyRows, TILE};
use crate::dtype::Coded;
use crate::dtype::coded::{CHUNK, SPAN, Scales, each_chunk};
use crate::simd::avx2::{LANES, values};
use std::arch::x86_64::*;

/// Vectors of a chunk.
const VECTORS: usize = CHUNK / LANES;
/// Rows that are added together.
const ROWS: usize = 4;

/// Adds `R` rows, from row `j` of the set on, for activations `t0..t0 + tile`.
///
/// # Safety
/// See [`AxpyRowsFn`](super::AxpyRowsFn); `j + R <= count`, `t0 + tile <= m`, `tile <= TILE`; AVX2.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn group<F: Coded, const R: usize>(a: &AxpyRows, j: usize, t0: usize, tile: usize) {
    let mut coefficients = [[0.0f32; R]; TILE];
    let mut scales = [Scales::default(); R];
    let (cols, end) = (a.rows.cols, a.start + a.cols);
    // SAFETY: rows j..j + R are in the set, activations t0..t0 + tile exist; chunks start below `end`, and what is beyond
    // it is not written.
    unsafe {
        let rows: [*const u8; R] = std::array::from_fn(|r| a.rows.row(j + r));
        for t in 0..tile {
            for r in 0..R {
                coefficients[t][r] = a.coefficient(t0 + t, j + r);
            }
        }
        for span in a.start / SPAN..end.div_ceil(SPAN) {
            for r in 0..R {
                F::scales(rows[r], cols, span, &mut scales[r]);
            }
            each_chunk! { (end - span * SPAN).min(SPAN).div_ceil(CHUNK), chunk, _place => {
                let c = span * SPAN + chunk * CHUNK;
                let mut w = [[_mm256_setzero_ps(); VECTORS]; R];
                for r in 0..R {
                    w[r] = values::<F>(F::codes(rows[r], cols, span, chunk), &scales[r], chunk);
                }
                for (t, k) in coefficients[..tile].iter().enumerate() {
                    let at = a.out.add((t0 + t) * a.out_stride + (c - a.start));
                    let mut last = [0.0f32; CHUNK];
                    let whole = c + CHUNK <= end;
                    if !whole {
                        std::ptr::copy_nonoverlapping(at, last.as_mut_ptr(), end - c);
                    }
                    let to = if whole { at } else { last.as_mut_ptr() };
                    for v in 0..VECTORS {
                        let mut even = _mm256_loadu_ps(to.add(v * LANES));
                        let mut odd = _mm256_setzero_ps();
                        for r in 0..R {
                            let k = _mm256_set1_ps(k[r]);
                            if r % 2 == 0 {
                                even = _mm256_fmadd_ps(k, w[r][v], even);
                            } else {
                                odd = _mm256_fmadd_ps(k, w[r][v], odd);
                            }
                        }
                        _mm256_storeu_ps(to.add(v * LANES), if R > 1 { _mm256_add_ps(even, odd) } else { even });
                    }
                    if !whole {
                        std::ptr::copy_nonoverlapping(last.as_ptr(), at, end - c);
                    }
                }
            } }
        }
    }
}

/// # Safety
/// See [`AxpyRowsFn`](super::AxpyRowsFn); AVX2.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) unsafe fn axpy_codes_avx2<F: Coded>(a: &AxpyRows) {
    let mut j = 0;
    while j < a.rows.count {
        let rows = if j + ROWS <= a.rows.count { ROWS } else { 1 };
        for t in (0..a.m).step_by(TILE) {
            let tile = TILE.min(a.m - t);
            // SAFETY: the contract is the caller's; the rows and activations are in range.
            unsafe {
                if rows == ROWS {
                    group::<F, ROWS>(a, j, t, tile);
                } else {
                    group::<F, 1>(a, j, t, tile);
                }
            }
        }
        j += rows;
    }
}
