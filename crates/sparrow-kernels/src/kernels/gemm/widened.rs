//! The blocked product in `f32`: floats of any type are widened once per panel.
//!
//! A panel is `ROWS` values per element of k, a strip `TOKENS`, and sums are `TOKENS` rows of `ROWS`.

use super::{Gemm, Outputs};
use std::ops::Range;

/// Packs activations in `f32`: `tokens` values for each of `len` elements from `k` on.
///
/// # Safety
/// The strip must be writable.
pub(super) unsafe fn pack_x(gemm: &Gemm, tokens: Range<usize>, k: usize, len: usize, width: usize, to: *mut u8) {
    let to = to.cast::<f32>();
    for t in 0..width {
        let x = if t < tokens.len() { &gemm.x[(tokens.start + t) * gemm.k + k..][..len] } else { &[] };
        for i in 0..len {
            // SAFETY: the strip is `width` by `len`.
            unsafe { *to.add(i * width + t) = x.get(i).copied().unwrap_or(0.0) };
        }
    }
}

/// Writes sums, rows of `width`, with bias.
///
/// # Safety
/// See [`Engine::finish`](super::Engine::finish).
pub(super) unsafe fn finish(
    outputs: &Outputs,
    tokens: Range<usize>,
    (sums, width): (*const f32, usize),
    bias: *const f32,
    out: *mut f32,
    stride: usize,
) {
    let rows = outputs.rows;
    for t in 0..tokens.len() {
        // SAFETY: tokens and rows are within the sums and within out, which only this task writes there.
        let (from, to) = unsafe {
            (
                std::slice::from_raw_parts(sums.add(t * width), rows),
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

/// Defines `Widened<D>`, the engine of a tier, from its features and the vectors of its module `$ops`.
macro_rules! widened {
    ($features:literal, $ops:ident) => {
        /// Weights of the type whose discriminant is `D`; codes come decoded, as f32.
        pub(super) struct Widened<const D: u8>;

        // SAFETY: a panel is `ROWS` values of f32 per element of k, a strip `TOKENS`, sums `TOKENS * ROWS`.
        unsafe impl<const D: u8> Engine for Widened<D> {
            const ROWS: usize = $ops::VECTORS * $ops::LANES;
            const TOKENS: usize = $ops::TOKENS;
            const BLOCK: usize = 256;
            const STEP: usize = 1;
            const W_BYTES: usize = 4;
            const X_BYTES: usize = 4;
            const DECODES: bool = D == F32;

            unsafe fn pack_x(gemm: &Gemm, tokens: Range<usize>, k: usize, len: usize, to: *mut u8) {
                // SAFETY: the contract is the caller's.
                unsafe { super::widened::pack_x(gemm, tokens, k, len, Self::TOKENS, to) };
            }

            #[inline]
            #[target_feature(enable = $features)]
            unsafe fn pack_w(panel: &Panel, to: *mut u8) {
                let to = to.cast::<f32>();
                let stored = panel.stored_rows();
                match panel.layout {
                    Layout::OutIn => {
                        for group in (0..Self::ROWS).step_by($ops::LANES) {
                            for i in (0..panel.len).step_by($ops::LANES) {
                                let here = $ops::LANES.min(panel.len - i);
                                let mut values = [$ops::zero_bits(); $ops::LANES];
                                for (r, value) in values.iter_mut().enumerate().take(panel.rows.saturating_sub(group)) {
                                    // SAFETY: the stored row has `len` elements from k; the load ends at the last.
                                    *value = unsafe {
                                        $ops::bits($ops::load_at::<D>(stored.row(group + r), panel.k + i, here))
                                    };
                                }
                                for (j, value) in $ops::transpose(values).into_iter().enumerate().take(here) {
                                    // SAFETY: the panel has ROWS values per element.
                                    unsafe { $ops::store_bits(to.add((i + j) * Self::ROWS + group).cast(), value) };
                                }
                            }
                        }
                    }
                    Layout::InOut => {
                        for i in 0..panel.len {
                            for group in (0..Self::ROWS).step_by($ops::LANES) {
                                let here = panel.rows.saturating_sub(group).min($ops::LANES);
                                // SAFETY: the stored row has `rows` elements from here, where the load ends; the panel
                                // has ROWS values per element.
                                unsafe {
                                    let value = if here == 0 {
                                        $ops::zero()
                                    } else {
                                        $ops::load_at::<D>(stored.row(i), panel.row + group, here)
                                    };
                                    $ops::store(to.add(i * Self::ROWS + group), value);
                                }
                            }
                        }
                    }
                }
            }

            #[inline]
            #[target_feature(enable = $features)]
            unsafe fn multiply(_: Layout, w: *const u8, x: *const u8, len: usize, first: bool, sums: *mut f32) {
                let (w, x) = (w.cast::<f32>(), x.cast::<f32>());
                let mut tile = [[$ops::zero(); $ops::VECTORS]; $ops::TOKENS];
                // SAFETY: the panel has ROWS and the strip TOKENS values per element, the sums TOKENS * ROWS.
                unsafe {
                    if !first {
                        for (t, row) in tile.iter_mut().enumerate() {
                            for (v, sum) in row.iter_mut().enumerate() {
                                *sum = $ops::load(sums.add(t * Self::ROWS + v * $ops::LANES));
                            }
                        }
                    }
                    for i in 0..len {
                        let mut values = [$ops::zero(); $ops::VECTORS];
                        for (v, value) in values.iter_mut().enumerate() {
                            *value = $ops::load(w.add(i * Self::ROWS + v * $ops::LANES));
                        }
                        for (t, row) in tile.iter_mut().enumerate() {
                            let a = $ops::splat(*x.add(i * $ops::TOKENS + t));
                            for (sum, value) in row.iter_mut().zip(values) {
                                *sum = $ops::multiply_add(a, value, *sum);
                            }
                        }
                    }
                    for (t, row) in tile.iter().enumerate() {
                        for (v, sum) in row.iter().enumerate() {
                            $ops::store(sums.add(t * Self::ROWS + v * $ops::LANES), *sum);
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
    };
}
pub(super) use widened;
