//! The blocked product of bf16 weights with activations rounded to bf16, by AVX512-BF16: pairs of neighbours along k, as
//! in [`codes`](super::codes), twice the rate of `f32`.

use super::{Engine, Gemm, Layout, Outputs, Panel};
use crate::parallel::Workers;
use crate::simd::avx512::{LANES, transpose16, upto16, upto32};
use crate::simd::prefetch;
use crate::simd::tiles::{bits, halves};
use std::arch::x86_64::*;
use std::ops::Range;

/// Vectors of outputs and activations of a tile of sums.
const VECTORS: usize = 3;
const TOKENS: usize = 8;
const ROWS: usize = VECTORS * LANES;
/// Elements of k of one vector.
const STEP: usize = 32;

/// Weights of bf16.
struct Bf16;

// SAFETY: pairs of both operands are 2 bytes an element; sums are `TOKENS * ROWS` of f32.
unsafe impl Engine for Bf16 {
    const ROWS: usize = ROWS;
    const TOKENS: usize = TOKENS;
    const BLOCK: usize = 512;
    const STEP: usize = STEP;
    const W_BYTES: usize = 2;
    const X_BYTES: usize = 2;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
    unsafe fn pack_x(gemm: &Gemm, tokens: Range<usize>, k: usize, len: usize, to: *mut u8) {
        let to = to.cast::<i32>();
        for i in (0..len).step_by(STEP) {
            let (low, high) = (upto16(len - i), upto16((len - i).saturating_sub(16)));
            for t in 0..TOKENS {
                let mut pairs = [0i32; STEP / 2];
                // SAFETY: the masks end at the last element of token t; the strip has TOKENS pairs per two elements.
                unsafe {
                    if t < tokens.len() {
                        let x = gemm.x.as_ptr().add((tokens.start + t) * gemm.k + k + i);
                        let a = _mm512_maskz_loadu_ps(low, x);
                        let b = _mm512_maskz_loadu_ps(high, x.wrapping_add(16));
                        _mm512_storeu_si512(pairs.as_mut_ptr().cast(), bits(_mm512_cvtne2ps_pbh(b, a)));
                    }
                    for (pair, &value) in pairs.iter().enumerate() {
                        *to.add((i / 2 + pair) * TOKENS + t) = value;
                    }
                }
            }
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    unsafe fn pack_w(panel: &Panel, to: *mut u8) {
        let (stored, to) = (panel.stored_rows(), to.cast::<i32>());
        match panel.layout {
            Layout::OutIn => {
                for group in (0..ROWS).step_by(LANES) {
                    for i in (0..panel.len).step_by(STEP) {
                        let mask = upto32(panel.len - i);
                        let mut rows = [_mm512_setzero_si512(); LANES];
                        for (r, row) in rows.iter_mut().enumerate().take(panel.rows.saturating_sub(group)) {
                            // SAFETY: the stored row has `len` elements from k, which the mask respects.
                            *row = unsafe { _mm512_maskz_loadu_epi16(mask, stored.at(group + r).add(2 * i).cast()) };
                        }
                        for (pair, v) in transpose16(rows).into_iter().enumerate() {
                            // SAFETY: the panel has ROWS pairs per two elements.
                            unsafe { _mm512_storeu_si512(to.add((i / 2 + pair) * ROWS + group).cast(), v) };
                        }
                    }
                }
            }
            Layout::InOut => {
                for pair in 0..panel.len.next_multiple_of(STEP) / 2 {
                    for group in (0..ROWS).step_by(LANES) {
                        let mask = upto16(panel.rows.saturating_sub(group));
                        let mut two = [_mm512_setzero_si512(); 2];
                        for (i, two) in two.iter_mut().enumerate() {
                            if 2 * pair + i < panel.len && mask != 0 {
                                let row = stored.at(2 * pair + i).wrapping_add(2 * group);
                                // SAFETY: the stored row has `rows` elements from here, which the mask respects.
                                *two = _mm512_cvtepu16_epi32(unsafe { _mm256_maskz_loadu_epi16(mask, row.cast()) });
                            }
                        }
                        let both = _mm512_or_si512(two[0], _mm512_slli_epi32::<16>(two[1]));
                        // SAFETY: the panel has ROWS pairs per two elements.
                        unsafe { _mm512_storeu_si512(to.add(pair * ROWS + group).cast(), both) };
                    }
                }
            }
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
    unsafe fn multiply(_: Layout, w: *const u8, x: *const u8, len: usize, first: bool, sums: *mut f32) {
        let (w, x) = (w.cast::<i32>(), x.cast::<i32>());
        let mut tile = [[_mm512_setzero_ps(); VECTORS]; TOKENS];
        // SAFETY: the panel has ROWS and the strip TOKENS pairs per two elements, the sums are TOKENS * ROWS.
        unsafe {
            if !first {
                for (t, row) in tile.iter_mut().enumerate() {
                    for (v, sum) in row.iter_mut().enumerate() {
                        *sum = _mm512_loadu_ps(sums.add(t * ROWS + v * LANES));
                    }
                }
            }
            for pair in 0..len / 2 {
                let mut values = [_mm512_setzero_si512(); VECTORS];
                for (v, value) in values.iter_mut().enumerate() {
                    *value = _mm512_loadu_si512(w.add(pair * ROWS + v * LANES).cast());
                }
                for (t, row) in tile.iter_mut().enumerate() {
                    let a = _mm512_set1_epi32(*x.add(pair * TOKENS + t));
                    for (sum, value) in row.iter_mut().zip(values) {
                        *sum = _mm512_dpbf16_ps(*sum, halves(value), halves(a));
                    }
                }
            }
            for (t, row) in tile.iter().enumerate() {
                for (v, sum) in row.iter().enumerate() {
                    _mm512_storeu_ps(sums.add(t * ROWS + v * LANES), *sum);
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn prefetch(p: *const u8, write: bool) {
        prefetch(p, write);
    }

    unsafe fn finish(
        _: &Gemm,
        outputs: &Outputs,
        tokens: Range<usize>,
        sums: *const f32,
        bias: *const f32,
        out: *mut f32,
        stride: usize,
    ) {
        // SAFETY: the contract is the caller's.
        unsafe { super::widened::finish(outputs, tokens, (sums, ROWS), bias, out, stride) };
    }
}

/// # Safety
/// See [`GemmFn`](super::GemmFn); AVX512-BF16.
pub(crate) unsafe fn gemm_bf16_avx512_bf16(workers: &Workers, gemm: &Gemm) {
    // SAFETY: the contract is the caller's.
    unsafe { super::driver::drive::<Bf16>(workers, gemm) }
}
