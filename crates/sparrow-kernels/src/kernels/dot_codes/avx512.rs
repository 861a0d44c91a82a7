//! `dot_codes` with AVX512-VNNI: 64 unsigned bytes of codes by the high and the low bytes of activations.
//!
//! VPDPBUSD adds four products to a lane. Those with the high bytes are 256 times as much; both are exact.

use super::DotCodes;
use crate::dtype::Coded;
use crate::dtype::coded::{CHUNK, FOUR, PAIR, SPAN, Scales, each_chunk, groups_of_four, groups_of_pair, of_groups};
use crate::simd::avx512::Avx512;
use crate::simd::prefetch;
use crate::simd::vector::Vector;
use std::arch::x86_64::*;

/// `R` rows by `M` activations.
///
/// # Safety
/// See [`DotCodesFn`](super::DotCodesFn); rows `j..j + R` and activations `t..t + M` must exist; AVX512-VNNI.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
unsafe fn tile<F: Coded, const R: usize, const M: usize>(a: &DotCodes, j: usize, t: usize) {
    let cols = a.rows.cols;
    let mut sums = [[_mm512_setzero_ps(); M]; R];
    // SAFETY: pairs start below cols, x is padded to whole spans.
    unsafe {
        let rows: [*const u8; R] = std::array::from_fn(|r| a.rows.row(j + r));
        let next: [*const u8; R] = std::array::from_fn(|r| a.rows.row((j + R + r).min(a.rows.count - 1)));
        let x: [*const u8; M] = std::array::from_fn(|m| a.x.arranged(t + m));
        for span in 0..cols.div_ceil(SPAN) {
            let (start, left) = (span * SPAN, (cols - span * SPAN).min(SPAN));
            if t == 0 {
                // The rows of the next call: hardware prefetch starts anew with every row.
                let bytes = const { F::DTYPE.row_bytes(SPAN) };
                for at in (0..bytes).step_by(64) {
                    next.iter().for_each(|row| prefetch(row.wrapping_add(span * bytes + at), false));
                }
            }
            let mut factors = [_mm512_setzero_ps(); R];
            for r in 0..R {
                let mut scales = Scales::default();
                F::byte_scales(rows[r], cols, span, &mut scales);
                factors[r] = of_groups(&scales.factors, F::GROUP);
                if F::BYTE_OFFSETS {
                    for m in 0..M {
                        let of_x = if F::GROUP == 16 {
                            _mm512_loadu_ps(a.x.sums16(t + m).add(start / 16))
                        } else {
                            _mm512_zextps256_ps512(_mm256_loadu_ps(a.x.sums(t + m).add(start / 32)))
                        };
                        sums[r][m] = _mm512_fmadd_ps(of_groups(&scales.offsets, F::GROUP), of_x, sums[r][m]);
                    }
                }
            }
            let x = x.map(|x| x.wrapping_add(2 * start));
            if left == SPAN && F::HALVES {
                let x = std::array::from_fn(|m| a.x.halves(t + m).wrapping_add(2 * start));
                each_chunk! { constant SPAN / FOUR, four => {
                    let codes = std::array::from_fn(|r| F::byte_halves(rows[r], cols, span, four));
                    add_halves::<R, M>(four, &codes, &factors, &x, &mut sums);
                } }
            } else if left == SPAN {
                each_chunk! { constant SPAN / PAIR, pair => {
                    let codes = std::array::from_fn(|r| F::byte_pair(rows[r], cols, span, pair));
                    add::<F, R, M>(pair, &codes, &factors, &x, &mut sums);
                } }
            } else {
                for pair in 0..left.div_ceil(PAIR) {
                    let codes = std::array::from_fn(|r| {
                        if pair * PAIR + CHUNK < left {
                            F::byte_pair(rows[r], cols, span, pair)
                        } else {
                            _mm512_zextsi256_si512(F::bytes(rows[r], cols, span, 2 * pair))
                        }
                    });
                    add::<F, R, M>(pair, &codes, &factors, &x, &mut sums);
                }
            }
        }
        for m in 0..M {
            let out = a.out.add((t + m) * a.out_stride + j);
            if R == 4 {
                let scale = _mm_set1_ps(a.x.scale(t + m));
                let four = Avx512::sum4(std::array::from_fn(|r| sums[r % R][m]));
                _mm_storeu_ps(out, _mm_mul_ps(_mm_loadu_ps(four.as_ptr()), scale));
            } else {
                for r in 0..R {
                    *out.add(r) = _mm512_reduce_add_ps(sums[r][m]) * a.x.scale(t + m);
                }
            }
        }
    }
}

/// Adds the products of pair number `pair` of a span, at which x begins.
///
/// # Safety
/// x must have the pair; AVX512-VNNI.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
unsafe fn add<F: Coded, const R: usize, const M: usize>(
    pair: usize,
    codes: &[__m512i; R],
    factors: &[__m512; R],
    x: &[*const u8; M],
    sums: &mut [[__m512; M]; R],
) {
    for r in 0..R {
        let factor = _mm512_permutexvar_ps(groups_of_pair(pair, F::GROUP), factors[r]);
        for m in 0..M {
            // SAFETY: the caller guarantees 64 high bytes and 64 low ones.
            let [high, low] = unsafe { [0, 64].map(|at| _mm512_load_si512(x[m].add(2 * pair * PAIR + at).cast())) };
            let high = _mm512_dpbusd_epi32(_mm512_setzero_si512(), codes[r], high);
            let both = _mm512_dpbusd_epi32(_mm512_slli_epi32::<8>(high), codes[r], low);
            sums[r][m] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(both), factor, sums[r][m]);
        }
    }
}

/// As [`add`], of four chunks as [`Coded::byte_halves`] gives them: products of a group come together in four lanes.
///
/// # Safety
/// x must have the chunks, in halves; AVX512-VNNI.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
unsafe fn add_halves<const R: usize, const M: usize>(
    four: usize,
    codes: &[[__m512i; 2]; R],
    factors: &[__m512; R],
    x: &[*const u8; M],
    sums: &mut [[__m512; M]; R],
) {
    for r in 0..R {
        let factor = _mm512_permutexvar_ps(groups_of_four(four), factors[r]);
        for m in 0..M {
            let x = x[m].wrapping_add(2 * four * FOUR).cast::<__m512i>();
            // SAFETY: the caller guarantees twice 64 high bytes and 64 low ones.
            let [first_high, first_low, last_high, last_low] = unsafe {
                [
                    _mm512_load_si512(x),
                    _mm512_load_si512(x.add(1)),
                    _mm512_load_si512(x.add(2)),
                    _mm512_load_si512(x.add(3)),
                ]
            };
            let [first, last] = codes[r];
            let high =
                _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(_mm512_setzero_si512(), first, first_high), last, last_high);
            let sum = _mm512_dpbusd_epi32(_mm512_slli_epi32::<8>(high), first, first_low);
            let sum = _mm512_dpbusd_epi32(sum, last, last_low);
            sums[r][m] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum), factor, sums[r][m]);
        }
    }
}

/// `R` rows by `M` activations, `AT_ONCE` rows at a time.
///
/// # Safety
/// As [`tile`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
unsafe fn rows<F: Coded, const R: usize, const AT_ONCE: usize, const M: usize>(a: &DotCodes, j: usize, t: usize) {
    for r in (0..R).step_by(AT_ONCE) {
        // SAFETY: the contract is the caller's.
        unsafe { tile::<F, AT_ONCE, M>(a, j + r, t) };
    }
}

/// Rows from `j` on by all activations: they stay in L1 until the last.
///
/// # Safety
/// See [`DotCodesFn`](super::DotCodesFn); rows `j..j + R` must exist; AVX512-VNNI.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
unsafe fn strip<F: Coded, const R: usize, const FEWER: usize>(a: &DotCodes, j: usize) {
    let mut t = 0;
    while t < a.m {
        // SAFETY: the contract is the caller's; each call covers activations that exist.
        unsafe {
            t += match a.m - t {
                4.. => {
                    rows::<F, R, FEWER, 4>(a, j, t);
                    4
                }
                2.. => {
                    rows::<F, R, R, 2>(a, j, t);
                    2
                }
                _ => {
                    rows::<F, R, R, 1>(a, j, t);
                    1
                }
            };
        }
    }
}

/// # Safety
/// See [`DotCodesFn`](super::DotCodesFn); AVX512-VNNI.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
pub(crate) unsafe fn dot_codes_avx512<F: Coded>(a: &DotCodes) {
    let mut j = 0;
    while j < a.rows.count {
        // SAFETY: the contract is the caller's; rows are in range.
        unsafe {
            j += if j + 4 <= a.rows.count {
                strip::<F, 4, 2>(a, j);
                4
            } else {
                strip::<F, 1, 1>(a, j);
                1
            };
        }
    }
}
