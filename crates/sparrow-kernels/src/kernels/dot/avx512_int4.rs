//! The tile of `dot_rows` for int4 weights with AVX-512.
//!
//! The 16 values that a nibble can stand for are one vector of `f32`, scaled once per block; nibbles index it. A block
//! of 32 elements is 16 bytes: one widening load, one shift, two lookups.

use crate::simd::avx512::*;
use crate::simd::avx512_int4::*;
use std::arch::x86_64::*;

/// Elements `from..to` of `R` rows by `M` activations; `from` is a multiple of [`SPAN`].
///
/// # Safety
/// As `tile` of the other types: rows of `cols` elements, `M` rows of x, `out` `[M, R]`; AVX-512.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
pub(super) unsafe fn tile<const D: u8, const R: usize, const M: usize>(
    [rows, next]: [[*const u8; R]; 2],
    cols: usize,
    (from, to): (usize, usize),
    x: *const f32,
    x_stride: usize,
    out: *mut f32,
    out_stride: usize,
) {
    let mut sums = [[_mm512_setzero_ps(); M]; R];
    let mut scales = [Scales::default(); R];
    // SAFETY: blocks below `to` exist in the rows, padded; elements of x are masked to below `to`.
    unsafe {
        for span in (from..to).step_by(SPAN) {
            for r in 0..R {
                scales[r] = Scales::load::<D>(rows[r], cols, span);
                Scales::prefetch::<D>(next[r], cols, span);
            }
            let end = to.min(span + SPAN);
            let full = end / 32 * 32;
            for c in (span..full).step_by(32) {
                for r in 0..R {
                    let w = scales[r].block::<D>(rows[r], c);
                    for t in 0..M {
                        let at = x.add(t * x_stride + c);
                        sums[r][t] = _mm512_fmadd_ps(w[0], _mm512_loadu_ps(at), sums[r][t]);
                        sums[r][t] = _mm512_fmadd_ps(w[1], _mm512_loadu_ps(at.add(LANES)), sums[r][t]);
                    }
                }
            }
            if full < end {
                let (low, high) = (upto16(end - full), upto16((end - full).saturating_sub(LANES)));
                for r in 0..R {
                    let w = scales[r].block::<D>(rows[r], full);
                    for t in 0..M {
                        let at = x.add(t * x_stride + full);
                        let v = [_mm512_maskz_loadu_ps(low, at), _mm512_maskz_loadu_ps(high, at.wrapping_add(LANES))];
                        sums[r][t] = _mm512_fmadd_ps(w[0], v[0], sums[r][t]);
                        sums[r][t] = _mm512_fmadd_ps(w[1], v[1], sums[r][t]);
                    }
                }
            }
        }
        for t in 0..M {
            for r in 0..R {
                let to = out.add(t * out_stride + r);
                let sum = _mm512_reduce_add_ps(sums[r][t]);
                *to = if from > 0 { *to + sum } else { sum };
            }
        }
    }
}
