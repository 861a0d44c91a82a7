//! The blocked product of bf16 weights with AVX512-BF16: 8 activations, rounded to bf16, by 3 vectors of outputs.
//!
//! VDPBF16PS adds the products of two pairs to a sum, so both operands are packed in pairs of neighbours along k, 32 bits
//! each: a panel is `ROWS` pairs for every two elements of k, a strip `TOKENS`, and sums are `TOKENS` rows of `ROWS`.
//! The instruction takes subnormal values for 0.

use super::{Engine, Gemm, Layout, Outputs, Panel};
use crate::parallel::Workers;
use crate::simd::avx512::{LANES, transpose16, upto16, upto32};
use crate::simd::prefetch;
use crate::simd::tiles::{load_rounded, pairs};
use std::arch::x86_64::*;
use std::ops::Range;

/// Vectors of outputs.
const VECTORS: usize = 3;
/// Elements of k that are packed together: a vector of bf16.
const STEP: usize = 32;

/// Weights of bf16, either way round.
struct Pairs;

// SAFETY: pairs of both operands are 2 bytes an element; sums are TOKENS * ROWS of f32.
unsafe impl Engine for Pairs {
    const ROWS: usize = VECTORS * LANES;
    const TOKENS: usize = 8;
    const BLOCK: usize = 256;
    const STEP: usize = STEP;
    const W_BYTES: usize = 2;
    const X_BYTES: usize = 2;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
    unsafe fn pack_x(gemm: &Gemm, tokens: Range<usize>, k: usize, len: usize, to: *mut u8) {
        let x = gemm.x[tokens.start * gemm.k + k..].as_ptr();
        for step in 0..len.div_ceil(STEP) {
            let mut rows = [_mm512_setzero_si512(); 16];
            for (t, row) in rows.iter_mut().enumerate().take(tokens.len()) {
                // SAFETY: token t exists, and has what is left of `len` elements here.
                *row = unsafe { load_rounded(x.add(t * gemm.k + step * STEP), len - step * STEP) };
            }
            for (pair, tokens) in transpose16(rows).into_iter().enumerate() {
                let at = (step * STEP / 2 + pair) * Self::TOKENS * 4;
                // SAFETY: the strip has TOKENS pairs for every two elements.
                unsafe { _mm256_storeu_si256(to.add(at).cast(), _mm512_castsi512_si256(tokens)) };
            }
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    unsafe fn pack_w(panel: &Panel, to: *mut u8) {
        let (stored, padded) = (panel.stored_rows(), panel.len.next_multiple_of(STEP));
        let vector = |pair: usize, v: usize| to.wrapping_add((pair * VECTORS + v) * 64);
        match panel.layout {
            Layout::OutIn => {
                for v in 0..VECTORS {
                    let count = panel.rows.saturating_sub(v * LANES).min(LANES);
                    for i in (0..padded).step_by(STEP) {
                        let mask = upto32(panel.len - i);
                        let mut rows = [_mm512_setzero_si512(); LANES];
                        for (r, row) in rows.iter_mut().enumerate().take(count) {
                            // SAFETY: the mask ends at the last element of the part of the row.
                            *row =
                                unsafe { _mm512_maskz_loadu_epi16(mask, stored.at(v * LANES + r).add(2 * i).cast()) };
                        }
                        for (pair, rows) in transpose16(rows).into_iter().enumerate() {
                            // SAFETY: the panel has VECTORS vectors of pairs for every two elements.
                            unsafe { _mm512_storeu_si512(vector(i / 2 + pair, v).cast(), rows) };
                        }
                    }
                }
            }
            Layout::InOut => {
                for pair in 0..padded / 2 {
                    for v in 0..VECTORS {
                        let mask = upto16(panel.rows.saturating_sub(v * LANES));
                        let row = |i: usize| {
                            let mask = if i < panel.len { mask } else { 0 };
                            // SAFETY: the mask ends at the last output of the part of the row, or is empty.
                            let row = unsafe {
                                let from = stored.at(i.min(panel.len - 1)).wrapping_add(2 * v * LANES);
                                _mm256_maskz_loadu_epi16(mask, from.cast())
                            };
                            _mm512_cvtepu16_epi32(row)
                        };
                        let both = _mm512_or_si512(row(2 * pair), _mm512_slli_epi32::<16>(row(2 * pair + 1)));
                        // SAFETY: as above.
                        unsafe { _mm512_storeu_si512(vector(pair, v).cast(), both) };
                    }
                }
            }
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
    unsafe fn multiply(_: Layout, w: *const u8, x: *const u8, len: usize, first: bool, sums: *mut f32) {
        let (w, x) = (w.cast::<__m512i>(), x.cast::<i32>());
        let mut tile = [[_mm512_setzero_ps(); VECTORS]; Self::TOKENS];
        // SAFETY: the panel has VECTORS vectors and the strip TOKENS pairs for every two elements, the sums TOKENS * ROWS.
        unsafe {
            let at = |t: usize, v: usize| sums.add(t * Self::ROWS + v * LANES);
            if !first {
                for (t, row) in tile.iter_mut().enumerate() {
                    for (v, sum) in row.iter_mut().enumerate() {
                        *sum = _mm512_loadu_ps(at(t, v));
                    }
                }
            }
            for pair in 0..len / 2 {
                let values: [__m512i; VECTORS] =
                    std::array::from_fn(|v| _mm512_loadu_si512(w.add(pair * VECTORS + v).cast()));
                for (t, row) in tile.iter_mut().enumerate() {
                    let a = pairs(_mm512_set1_epi32(*x.add(pair * Self::TOKENS + t)));
                    for (sum, value) in row.iter_mut().zip(values) {
                        *sum = _mm512_dpbf16_ps(*sum, pairs(value), a);
                    }
                }
            }
            for (t, row) in tile.iter().enumerate() {
                for (v, sum) in row.iter().enumerate() {
                    _mm512_storeu_ps(at(t, v), *sum);
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
        unsafe { super::widened::finish(outputs, tokens, (sums, Self::ROWS), bias, out, stride) };
    }
}

/// Many activations, rounded to bf16, by weights in bf16.
///
/// # Safety
/// See [`GemmFn`](super::GemmFn); AVX-512 with BF16.
pub(crate) unsafe fn gemm_bf16_avx512_bf16(workers: &Workers, gemm: &Gemm) {
    // SAFETY: the contract is the caller's.
    unsafe { super::driver::drive::<Pairs>(workers, gemm) }
}
