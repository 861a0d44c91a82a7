//! The blocked product in `f32` with AVX-512: weights of any type are widened once per panel.

use super::{Engine, Gemm, Layout, Outputs, Panel};
use crate::dtype::{BF16, F16, F32, I4G32, I4G32Z, I4G128, I4G128Z};
use crate::parallel::Workers;
use crate::simd::avx512::{LANES, load_at, prefetch, transpose16};
use std::arch::x86_64::*;
use std::ops::Range;

/// Vectors of outputs and activations of a tile of sums: 24 registers of sums, three of weights, one of activations.
const VECTORS: usize = 3;
const TOKENS: usize = 8;
const ROWS: usize = VECTORS * LANES;

/// Weights of the type whose discriminant is `D`.
struct Widened<const D: u8>;

// SAFETY: a panel is `ROWS` values of f32 per element of k, a strip `TOKENS`, sums `TOKENS * ROWS`.
unsafe impl<const D: u8> Engine for Widened<D> {
    const ROWS: usize = ROWS;
    const TOKENS: usize = TOKENS;
    const BLOCK: usize = 256;
    const STEP: usize = 1;
    const W_BYTES: usize = 4;
    const X_BYTES: usize = 4;

    unsafe fn pack_x(gemm: &Gemm, tokens: Range<usize>, k: usize, len: usize, to: *mut u8) {
        let to = to.cast::<f32>();
        for t in 0..TOKENS {
            let x = if t < tokens.len() { &gemm.x[(tokens.start + t) * gemm.k + k..][..len] } else { &[] };
            for i in 0..len {
                // SAFETY: the strip is TOKENS by len.
                unsafe { *to.add(i * TOKENS + t) = x.get(i).copied().unwrap_or(0.0) };
            }
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    unsafe fn pack_w(panel: &Panel, to: *mut u8) {
        let to = to.cast::<f32>();
        match panel.layout {
            Layout::OutIn => {
                let (stored, cols) = (panel.stored_rows(), panel.weights.cols());
                for group in (0..ROWS).step_by(LANES) {
                    for i in (0..panel.len).step_by(LANES) {
                        let here = LANES.min(panel.len - i);
                        let mut values = [_mm512_setzero_si512(); LANES];
                        for (r, value) in values.iter_mut().enumerate().take(panel.rows.saturating_sub(group)) {
                            // SAFETY: the stored row has `len` elements from k; the load ends at the last.
                            let v = unsafe { load_at::<D>(stored.row(group + r), cols, panel.k + i, here) };
                            *value = _mm512_castps_si512(v);
                        }
                        for (j, value) in transpose16(values).into_iter().enumerate().take(here) {
                            // SAFETY: the panel has ROWS values per element.
                            unsafe { _mm512_storeu_si512(to.add((i + j) * ROWS + group).cast(), value) };
                        }
                    }
                }
            }
            Layout::InOut => {
                let (stored, cols) = (panel.stored_rows(), panel.weights.cols());
                for i in 0..panel.len {
                    for group in (0..ROWS).step_by(LANES) {
                        let here = panel.rows.saturating_sub(group).min(LANES);
                        // SAFETY: the stored row has `rows` elements from here, where the load ends; the panel has ROWS
                        // values per element.
                        unsafe {
                            let value = if here == 0 {
                                _mm512_setzero_ps()
                            } else {
                                load_at::<D>(stored.row(i), cols, panel.row + group, here)
                            };
                            _mm512_storeu_ps(to.add(i * ROWS + group), value);
                        }
                    }
                }
            }
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    unsafe fn multiply(_: Layout, w: *const u8, x: *const u8, len: usize, first: bool, sums: *mut f32) {
        let (w, x) = (w.cast::<f32>(), x.cast::<f32>());
        let mut tile = [[_mm512_setzero_ps(); VECTORS]; TOKENS];
        // SAFETY: the panel has ROWS and the strip TOKENS values per element, the sums TOKENS * ROWS.
        unsafe {
            if !first {
                for (t, row) in tile.iter_mut().enumerate() {
                    for (v, sum) in row.iter_mut().enumerate() {
                        *sum = _mm512_loadu_ps(sums.add(t * ROWS + v * LANES));
                    }
                }
            }
            for i in 0..len {
                let values: [__m512; VECTORS] = std::array::from_fn(|v| _mm512_loadu_ps(w.add(i * ROWS + v * LANES)));
                for (t, row) in tile.iter_mut().enumerate() {
                    let a = _mm512_set1_ps(*x.add(i * TOKENS + t));
                    for (sum, value) in row.iter_mut().zip(values) {
                        *sum = _mm512_fmadd_ps(a, value, *sum);
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
        let rows = outputs.rows;
        for t in 0..tokens.len() {
            // SAFETY: tokens and rows are within the sums and within out, which only this task writes there.
            let (from, to) = unsafe {
                (
                    std::slice::from_raw_parts(sums.add(t * ROWS), rows),
                    std::slice::from_raw_parts_mut(out.add(t * stride), rows),
                )
            };
            to.copy_from_slice(from);
            if !bias.is_null() {
                // SAFETY: a bias has one value per row.
                let bias = unsafe { std::slice::from_raw_parts(bias, rows) };
                for (to, b) in to.iter_mut().zip(bias) {
                    *to += b;
                }
            }
        }
    }
}

macro_rules! kernels {
    ($($gemm:ident: $dtype:expr;)*) => {$(
        /// # Safety
        /// See [`GemmFn`](super::GemmFn); AVX-512.
        pub(crate) unsafe fn $gemm(workers: &Workers, gemm: &Gemm) {
            // SAFETY: the contract is the caller's.
            unsafe { super::driver::drive::<Widened<{ $dtype }>>(workers, gemm) }
        }
    )*};
}

kernels! {
    gemm_f32_avx512: F32;
    gemm_f16_avx512: F16;
    gemm_bf16_avx512: BF16;
    gemm_i4g32_avx512: I4G32;
    gemm_i4g32z_avx512: I4G32Z;
    gemm_i4g128_avx512: I4G128;
    gemm_i4g128z_avx512: I4G128Z;
}
