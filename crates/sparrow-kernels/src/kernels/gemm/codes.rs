//! The blocked product of codes with activations in 16-bit integers: exact inside groups.
//!
//! Both operands are packed in pairs of neighbours along k, 32 bits each: a panel is `ROWS` pairs per two elements, then
//! the factors and offsets of each group, `ROWS` of each; a strip is `TOKENS` pairs per two elements, then the sums of
//! each group, `TOKENS` of them. Int8 has no groups: its sums are exact from one end of k to the other, as they are for
//! few activations, so they are kept as `f64`.

use super::Gemm;
use crate::rows::Int16Rows;
use std::ops::Range;

/// Packs the pairs of activations: `width` for each two of `len` elements, an even number, from `k` on.
///
/// # Safety
/// The strip must be writable; x must have the elements, or padding.
pub(super) unsafe fn pack_pairs(x: Int16Rows, tokens: Range<usize>, k: usize, len: usize, width: usize, to: *mut u8) {
    let to = to.cast::<i32>();
    for t in 0..width {
        let row =
            if t < tokens.len() { x.codes(tokens.start + t).wrapping_add(k).cast::<i32>() } else { std::ptr::null() };
        for pair in 0..len / 2 {
            // SAFETY: the strip is `width` pairs by `len / 2`; the row has `len` elements, k is even.
            unsafe { *to.add(pair * width + t) = if row.is_null() { 0 } else { *row.add(pair) } };
        }
    }
}

/// Packs the sums of the activations over groups of `group` elements, from `k`, a multiple of it, on.
///
/// # Safety
/// As [`pack_pairs`].
pub(super) unsafe fn pack_sums(
    gemm: &Gemm,
    tokens: Range<usize>,
    (k, len, group): (usize, usize, usize),
    width: usize,
    to: *mut f32,
) {
    let x = gemm.quantized();
    for t in 0..width {
        for g in 0..len.div_ceil(group) {
            // SAFETY: the strip has room for `width` sums per group; x has a sum for each of its groups.
            unsafe {
                let sums = if group == 16 { x.sums16(tokens.start + t) } else { x.sums(tokens.start + t) };
                *to.add(g * width + t) = if t < tokens.len() { *sums.add(k / group + g) } else { 0.0 };
            }
        }
    }
}

/// Defines `Codes<F>`, `Int8` and their kernels, the engines of a tier, from its features and the vectors of `$ops`.
macro_rules! codes {
    ($features:literal, $ops:ident, $gemm_codes:ident, $gemm_i8:ident) => {
        /// Weights of codes, `[out, in]`, with groups of so many elements.
        struct Codes<const GROUP: usize, const OFFSETS: bool>;

        /// Elements of k that one step takes.
        const STEP: usize = 32;

        // SAFETY: W_BYTES and X_BYTES are 2 for the codes, and 1 for factors and offsets, or sums, of which there are at
        // most two of 4 bytes for 16 elements.
        unsafe impl<const GROUP: usize, const OFFSETS: bool> Engine for Codes<GROUP, OFFSETS> {
            const ROWS: usize = $ops::VECTORS * $ops::LANES;
            const TOKENS: usize = $ops::TOKENS;
            const BLOCK: usize = SPAN;
            const STEP: usize = STEP;
            const W_BYTES: usize = 3;
            const X_BYTES: usize = 3;

            unsafe fn pack_x(gemm: &Gemm, tokens: Range<usize>, k: usize, len: usize, to: *mut u8) {
                let len = len.next_multiple_of(STEP);
                // SAFETY: x is padded to whole spans; the strip has room for both.
                unsafe {
                    super::codes::pack_pairs(gemm.quantized(), tokens.clone(), k, len, Self::TOKENS, to);
                    if OFFSETS {
                        let sums = to.add(2 * len * Self::TOKENS).cast();
                        super::codes::pack_sums(gemm, tokens, (k, len, GROUP), Self::TOKENS, sums);
                    }
                }
            }

            unsafe fn pack_w(panel: &Panel, to: *mut u8) {
                // SAFETY: the contract is the caller's; panels of codes come with what packs them.
                unsafe { (panel.pack.expect("weights of codes"))(panel, to) };
            }

            #[inline]
            #[target_feature(enable = $features)]
            unsafe fn multiply(_: Layout, w: *const u8, x: *const u8, len: usize, first: bool, sums: *mut f32) {
                let (pairs_w, pairs_x) = (w.cast::<i32>(), x.cast::<i32>());
                // SAFETY: the panel and the strip have pairs for `len` elements, and after them what belongs to their
                // groups; the sums are TOKENS * ROWS.
                unsafe {
                    let factors = w.add(2 * len * Self::ROWS).cast::<f32>();
                    let offsets = factors.add(len / GROUP * Self::ROWS);
                    let of_x = x.add(2 * len * Self::TOKENS).cast::<f32>();
                    for g in 0..len / GROUP {
                        let first = first && g == 0;
                        let at = g * GROUP / 2;
                        let tile = products(pairs_w.add(at * Self::ROWS), pairs_x.add(at * Self::TOKENS), GROUP / 2);
                        let mut by = [$ops::zero(); $ops::VECTORS];
                        for (v, by) in by.iter_mut().enumerate() {
                            *by = $ops::load(factors.add(g * Self::ROWS + v * $ops::LANES));
                        }
                        for (t, row) in tile.into_iter().enumerate() {
                            for (v, product) in row.into_iter().enumerate() {
                                let at = sums.add(t * Self::ROWS + v * $ops::LANES);
                                let mut sum = if first { $ops::zero() } else { $ops::load(at) };
                                sum = $ops::multiply_add($ops::to_floats(product), by[v], sum);
                                if OFFSETS {
                                    let offset = $ops::load(offsets.add(g * Self::ROWS + v * $ops::LANES));
                                    sum = $ops::multiply_add($ops::splat(*of_x.add(g * Self::TOKENS + t)), offset, sum);
                                }
                                $ops::store(at, sum);
                            }
                        }
                    }
                }
            }

            #[inline(always)]
            unsafe fn prefetch(p: *const u8, write: bool) {
                prefetch(p, write);
            }

            unsafe fn finish(
                gemm: &Gemm,
                outputs: &Outputs,
                tokens: Range<usize>,
                sums: *const f32,
                bias: *const f32,
                out: *mut f32,
                stride: usize,
            ) {
                let x = gemm.quantized();
                for t in 0..tokens.len() {
                    for r in 0..outputs.rows {
                        // SAFETY: tokens and rows are within the sums and within out, which only this task writes
                        // there; a bias has one value per row.
                        unsafe {
                            let value = *sums.add(t * Self::ROWS + r) * x.scale(tokens.start + t);
                            let bias = if bias.is_null() { 0.0 } else { *bias.add(r) };
                            *out.add(t * stride + r) = value + bias;
                        }
                    }
                }
            }
        }

        /// Packs a panel, see [`Codes`].
        ///
        /// # Safety
        /// See [`Engine::pack_w`].
        #[target_feature(enable = $features)]
        unsafe fn pack_codes<F: Coded>(panel: &Panel, to: *mut u8) {
            const ROWS: usize = $ops::VECTORS * $ops::LANES;
            let (stored, cols) = (panel.stored_rows(), panel.weights.cols());
            let padded = panel.len.next_multiple_of(STEP);
            let groups = padded / F::GROUP;
            let pairs = to.cast::<i32>();
            let factors = to.wrapping_add(2 * padded * ROWS).cast::<f32>();
            let offsets = factors.wrapping_add(groups * ROWS);
            // SAFETY: the stored rows have `len` elements from k, a multiple of a span; the panel has room for the
            // pairs, factors and offsets of ROWS.
            unsafe {
                let mut scales = Scales::default();
                for r in 0..ROWS {
                    if r < panel.rows {
                        F::scales(stored.row(r), cols, panel.k / SPAN, &mut scales);
                    } else {
                        scales = Scales::default();
                    }
                    for g in 0..groups {
                        *factors.add(g * ROWS + r) = scales.factors[g];
                        *offsets.add(g * ROWS + r) = scales.offsets[g];
                    }
                }
                for group in (0..ROWS).step_by($ops::LANES) {
                    let count = panel.rows.saturating_sub(group).min($ops::LANES);
                    let mut from = [std::ptr::null(); $ops::LANES];
                    (0..count).for_each(|r| from[r] = stored.row(group + r));
                    each_chunk! { padded / STEP, chunk => {
                        let mut rows = [_mm256_setzero_si256(); $ops::LANES];
                        for r in 0..count {
                            rows[r] = F::codes(from[r], cols, panel.k / SPAN, chunk);
                        }
                        $ops::store_pairs(rows, pairs.add(chunk * STEP / 2 * ROWS + group), ROWS);
                    } }
                }
            }
        }

        /// The sums of `count` pairs, at most 128: `TOKENS` by `VECTORS` vectors.
        ///
        /// # Safety
        /// The operands must be readable.
        #[inline]
        #[target_feature(enable = $features)]
        unsafe fn products(
            w: *const i32,
            x: *const i32,
            count: usize,
        ) -> [[$ops::Integers; $ops::VECTORS]; $ops::TOKENS] {
            let mut tile = [[$ops::no_integers(); $ops::VECTORS]; $ops::TOKENS];
            // SAFETY: the caller guarantees the operands.
            unsafe {
                for pair in 0..count {
                    let mut values = [$ops::no_integers(); $ops::VECTORS];
                    for (v, value) in values.iter_mut().enumerate() {
                        *value = $ops::load_integers(w.add((pair * $ops::VECTORS + v) * $ops::LANES));
                    }
                    for (t, row) in tile.iter_mut().enumerate() {
                        let a = $ops::splat_integer(*x.add(pair * $ops::TOKENS + t));
                        for (sum, value) in row.iter_mut().zip(values) {
                            *sum = $ops::add_pairs(*sum, value, a);
                        }
                    }
                }
            }
            tile
        }

        /// Weights of int8, either way round.
        struct Int8;

        // SAFETY: pairs of both operands are 2 bytes an element; sums are f64.
        unsafe impl Engine for Int8 {
            const ROWS: usize = $ops::VECTORS * $ops::LANES;
            const TOKENS: usize = $ops::TOKENS;
            const BLOCK: usize = SPAN;
            const STEP: usize = STEP;
            const W_BYTES: usize = 2;
            const X_BYTES: usize = 2;
            const SUM_BYTES: usize = size_of::<f64>();

            unsafe fn pack_x(gemm: &Gemm, tokens: Range<usize>, k: usize, len: usize, to: *mut u8) {
                let len = len.next_multiple_of(STEP);
                // SAFETY: x is padded to whole spans; the strip has room.
                unsafe { super::codes::pack_pairs(gemm.quantized(), tokens, k, len, Self::TOKENS, to) };
            }

            #[inline]
            #[target_feature(enable = $features)]
            unsafe fn pack_w(panel: &Panel, to: *mut u8) {
                let stored = panel.stored_rows();
                let (padded, pairs) = (panel.len.next_multiple_of(STEP), to.cast::<i32>());
                let part = |row: usize, from: usize, n: usize| {
                    let mut codes = [0u8; STEP];
                    // SAFETY: the caller of this closure guarantees n codes there.
                    unsafe { std::ptr::copy_nonoverlapping(stored.at(row).add(from), codes.as_mut_ptr(), n.min(STEP)) };
                    codes
                };
                // SAFETY: the stored rows have `len` elements from k, or `rows` from the first; the panel has room for
                // the pairs of ROWS.
                unsafe {
                    match panel.layout {
                        Layout::OutIn => {
                            for group in (0..Self::ROWS).step_by($ops::LANES) {
                                for i in (0..padded).step_by(STEP) {
                                    let mut rows = [_mm256_setzero_si256(); $ops::LANES];
                                    for (r, row) in rows.iter_mut().enumerate().take(panel.rows.saturating_sub(group)) {
                                        *row = if i + STEP <= panel.len {
                                            _mm256_loadu_si256(stored.at(group + r).add(i).cast())
                                        } else {
                                            _mm256_loadu_si256(part(group + r, i, panel.len - i).as_ptr().cast())
                                        };
                                    }
                                    $ops::store_pairs(rows, pairs.add(i / 2 * Self::ROWS + group), Self::ROWS);
                                }
                            }
                        }
                        Layout::InOut => {
                            for pair in 0..padded / 2 {
                                for group in (0..Self::ROWS).step_by(16) {
                                    let n = panel.rows.saturating_sub(group).min(16);
                                    let mut two = [_mm_setzero_si128(); 2];
                                    for (i, two) in two.iter_mut().enumerate() {
                                        let row = 2 * pair + i;
                                        if row < panel.len && n > 0 {
                                            *two = _mm_loadu_si128(part(row, group, n).as_ptr().cast());
                                        }
                                    }
                                    let [a, b] = two;
                                    let to = pairs.add(pair * Self::ROWS + group);
                                    for (half, both) in
                                        [_mm_unpacklo_epi8(a, b), _mm_unpackhi_epi8(a, b)].into_iter().enumerate()
                                    {
                                        _mm256_storeu_si256(to.add(8 * half).cast(), _mm256_cvtepi8_epi16(both));
                                    }
                                }
                            }
                        }
                    }
                }
            }

            #[inline]
            #[target_feature(enable = $features)]
            unsafe fn multiply(_: Layout, w: *const u8, x: *const u8, len: usize, first: bool, sums: *mut f32) {
                let sums = sums.cast::<f64>();
                // SAFETY: the panel and the strip have pairs for `len` elements, at most a block; the sums are TOKENS *
                // ROWS. A lane's sum is at most 256 · 128 · 32512, which fits.
                unsafe {
                    for (t, row) in products(w.cast(), x.cast(), len / 2).into_iter().enumerate() {
                        for (v, product) in row.into_iter().enumerate() {
                            $ops::add_to_f64(sums.add(t * Self::ROWS + v * $ops::LANES), product, first);
                        }
                    }
                }
            }

            #[inline(always)]
            unsafe fn prefetch(p: *const u8, write: bool) {
                prefetch(p, write);
            }

            unsafe fn finish(
                gemm: &Gemm,
                outputs: &Outputs,
                tokens: Range<usize>,
                sums: *const f32,
                bias: *const f32,
                out: *mut f32,
                stride: usize,
            ) {
                let (x, sums) = (gemm.quantized(), sums.cast::<f64>());
                for r in 0..outputs.rows {
                    let scale = match gemm.layout {
                        Layout::OutIn => outputs.weights.int8_scale(outputs.row + r),
                        Layout::InOut => 1.0,
                    };
                    for t in 0..tokens.len() {
                        // SAFETY: tokens and rows are within the sums and within out, which only this task writes
                        // there; a bias has one value per row.
                        unsafe {
                            let value = *sums.add(t * Self::ROWS + r) as f32 * (scale * x.scale(tokens.start + t));
                            *out.add(t * stride + r) = if bias.is_null() { value } else { value + *bias.add(r) };
                        }
                    }
                }
            }
        }

        /// # Safety
        /// See [`GemmFn`](super::GemmFn); the tier's features.
        pub(crate) unsafe fn $gemm_codes<F: Coded>(workers: &Workers, gemm: &Gemm) {
            // SAFETY: the contract is the caller's.
            unsafe {
                // Neighbours along k have scales of their own where it is the other way round: no sums of integers.
                if gemm.layout == Layout::InOut {
                    return super::driver::drive::<Widened<F32>>(workers, gemm);
                }
                let gemm = &Gemm { pack: Some(pack_codes::<F>), ..*gemm };
                match (F::GROUP, F::OFFSETS) {
                    (16, false) => super::driver::drive::<Codes<16, false>>(workers, gemm),
                    (16, true) => super::driver::drive::<Codes<16, true>>(workers, gemm),
                    (_, false) => super::driver::drive::<Codes<32, false>>(workers, gemm),
                    (_, true) => super::driver::drive::<Codes<32, true>>(workers, gemm),
                }
            }
        }

        /// # Safety
        /// See [`GemmFn`](super::GemmFn); the tier's features.
        pub(crate) unsafe fn $gemm_i8(workers: &Workers, gemm: &Gemm) {
            // SAFETY: the contract is the caller's.
            unsafe { super::driver::drive::<Int8>(workers, gemm) }
        }
    };
}
pub(super) use codes;
