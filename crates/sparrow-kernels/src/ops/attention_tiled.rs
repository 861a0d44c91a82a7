//! Attention of a block of rows over one sequence's cache, tile by tile, with online softmax (arXiv 2205.14135).
//!
//! Keys and values of a head are widened once per block of rows instead of being read once per row. For every tile of
//! [`KEYS`] keys a strip of queries runs through scores, softmax and weighted sum while the tile stays in L2: for
//! head_dim 128 that is 96 KiB of keys and 108 KiB of values. Both products are those of [`gemm`](super::gemm), in `f32`.

// Without vector tiers nothing uses this.
#![cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]

use super::attention::{AttentionShape, KvView};
use super::gemm::{Engine, Layout, Panel};
use crate::Compute;
use crate::dtype::Matrix;
use crate::shared_mut::SharedMut;
use std::ops::Range;

/// Keys of a tile.
const KEYS: usize = 192;
/// Queries, rows times heads that share keys, worth packing a tile for.
pub(crate) const QUERIES: usize = 128;
/// The largest head that fits a panel.
pub(crate) const MAX_HEAD_DIM: usize = 256;

/// Some rows that see the same cache, for one key head.
pub(crate) struct Block<'a, 'c> {
    pub shape: &'a AttentionShape,
    /// `[rows, heads, head_dim]` of the whole call.
    pub q: &'a [f32],
    pub rows: Range<usize>,
    /// The key head.
    pub head: usize,
    /// Of each of these rows; the caches are the same, and checked.
    pub kv: &'a dyn Fn(usize) -> KvView<'c>,
    /// `[rows, heads, head_dim]` of the whole call.
    pub out: SharedMut<'a, f32>,
}

/// Attention of one block.
///
/// # Safety
/// The CPU must have the kernel's features; `head_dim` must be at most [`MAX_HEAD_DIM`], and nobody else may use the
/// results of these rows and heads.
pub(crate) type AttendFn = unsafe fn(&Compute, &Block);

/// # Safety
/// See [`AttendFn`]; a panel and a strip of `E` hold `f32`.
pub(crate) unsafe fn attend<E: Engine>(compute: &Compute, block: &Block) {
    let &Block { shape, q, ref rows, head, kv, out } = block;
    let &AttentionShape { heads, kv_heads, head_dim: d, scale, soft_cap } = shape;
    let group = heads / kv_heads;
    let queries = rows.len() * group;
    let strips = queries.div_ceil(E::TOKENS);
    let view = kv(rows.start);
    let bytes = view.capacity * view.dtype.row_bytes(d);
    let of_head = head * bytes..(head + 1) * bytes;
    let keys = Matrix::new(view.dtype, view.capacity, d, &view.keys[of_head.clone()]);
    let values = Matrix::new(view.dtype, view.capacity, d, &view.values[of_head]);
    let place = |query: usize| ((rows.start + query / group) * heads + head * group + query % group) * d;
    let seen = |query: usize| {
        let view = kv(rows.start + query / group);
        view.start..view.len
    };
    let start = (0..queries).map(|i| seen(i).start).min().unwrap_or(0);
    let end = (0..queries).map(|i| seen(i).end).max().unwrap_or(0);

    let (key_panels, value_panels) = (KEYS.div_ceil(E::ROWS), d.div_ceil(E::ROWS));
    let tile = E::ROWS * E::TOKENS;
    let sizes = [
        strips * E::TOKENS * d,                  // packed queries
        key_panels * E::ROWS * d,                // packed keys
        value_panels * E::ROWS * KEYS,           // packed values
        tile,                                    // sums of a panel of keys
        E::TOKENS * KEYS,                        // scores, then weights
        E::TOKENS * KEYS,                        // packed weights
        strips * value_panels * tile,            // weighted sums of values
        E::TOKENS * d.next_multiple_of(E::ROWS), // results of a strip
        2 * strips * E::TOKENS,                  // the largest score and the total of each query
    ];
    let mut scratch = compute.scratch.take_aligned(sizes.iter().map(|n| n.next_multiple_of(16) * 4).sum());
    // SAFETY: the buffer is aligned to 64 bytes, and any bytes are valid f32.
    let (_, mut rest, _) = unsafe { scratch.align_to_mut::<f32>() };
    let [packed_q, packed_k, packed_v, sums, scores, packed_p, totals, result, stats] = sizes.map(|n| {
        let (part, others) = std::mem::take(&mut rest).split_at_mut(n.next_multiple_of(16));
        rest = others;
        part
    });
    let (largest, total) = stats.split_at_mut(strips * E::TOKENS);
    largest.fill(f32::NEG_INFINITY);
    total.fill(0.0);
    totals.fill(0.0);
    for (s, packed) in packed_q.chunks_exact_mut(E::TOKENS * d).take(strips).enumerate() {
        let here = E::TOKENS.min(queries - s * E::TOKENS);
        for i in 0..here {
            let at = place(s * E::TOKENS + i);
            result[i * d..(i + 1) * d].copy_from_slice(&q[at..at + d]);
        }
        // SAFETY: the caller vouches for the features; `result` holds the queries of the strip, d apart.
        unsafe { E::pack_x(Layout::OutIn, result.as_ptr(), d, here, d, packed.as_mut_ptr().cast()) };
    }
    for first in (start..end).step_by(KEYS) {
        let count = KEYS.min(end - first);
        for p in 0..count.div_ceil(E::ROWS) {
            let (row, rows) = (first + p * E::ROWS, E::ROWS.min(count - p * E::ROWS));
            let panel = Panel { weights: keys, layout: Layout::OutIn, ids: None, row, rows, k: 0, len: d };
            // SAFETY: as above; a panel has ROWS * d values.
            unsafe { E::pack_w(&panel, packed_k[p * E::ROWS * d..].as_mut_ptr().cast()) };
        }
        for p in 0..value_panels {
            let (row, rows) = (p * E::ROWS, E::ROWS.min(d - p * E::ROWS));
            let panel = Panel { weights: values, layout: Layout::InOut, ids: None, row, rows, k: first, len: count };
            // SAFETY: as above; a panel has at most ROWS * KEYS values.
            unsafe { E::pack_w(&panel, packed_v[p * E::ROWS * KEYS..].as_mut_ptr().cast()) };
        }
        for s in 0..strips {
            let here = E::TOKENS.min(queries - s * E::TOKENS);
            let sees = |i: usize| {
                let seen = seen(s * E::TOKENS + i);
                seen.start.clamp(first, first + count) - first..seen.end.clamp(first, first + count) - first
            };
            if (0..here).all(|i| sees(i).is_empty()) {
                continue;
            }
            let x = packed_q[s * E::TOKENS * d..].as_ptr().cast();
            for p in 0..count.div_ceil(E::ROWS) {
                let rows = E::ROWS.min(count - p * E::ROWS);
                let (w, to) = (packed_k[p * E::ROWS * d..].as_ptr().cast(), scores[p * E::ROWS..].as_mut_ptr());
                // SAFETY: as above; strip and panel have d values per row, and `scores` is [TOKENS, KEYS].
                unsafe {
                    E::multiply(Layout::OutIn, w, x, d, true, sums.as_mut_ptr());
                    E::finish(Layout::OutIn, sums.as_ptr(), rows, here, std::ptr::null(), to, KEYS);
                }
            }
            let sums_of_strip = &mut totals[s * value_panels * tile..(s + 1) * value_panels * tile];
            for i in 0..here {
                let row = &mut scores[i * KEYS..i * KEYS + count];
                let sees = sees(i);
                row[..sees.start].fill(0.0);
                row[sees.end..].fill(0.0);
                if sees.is_empty() {
                    continue;
                }
                let row = &mut row[sees];
                let query = s * E::TOKENS + i;
                // SAFETY: the table holds only kernels that this CPU can run.
                let now = unsafe {
                    (compute.kernels.scale_scores)(row, scale, soft_cap);
                    (compute.kernels.max_ignoring_nan)(row).max(largest[query])
                };
                if now > largest[query] {
                    let shrink = (largest[query] - now).exp();
                    total[query] *= shrink;
                    for panel in sums_of_strip.chunks_exact_mut(tile) {
                        panel[i * E::ROWS..(i + 1) * E::ROWS].iter_mut().for_each(|v| *v *= shrink);
                    }
                    largest[query] = now;
                }
                // Nothing but negative infinities so far: weights of 0.
                let shift = if now == f32::NEG_INFINITY { 0.0 } else { now };
                // SAFETY: as above.
                total[query] += unsafe { (compute.kernels.exp_sum)(row, shift) };
            }
            // SAFETY: as above; the weights are [TOKENS, KEYS], `count` of them valid; panels and sums have these shapes.
            unsafe {
                E::pack_x(Layout::InOut, scores.as_ptr(), KEYS, here, count, packed_p.as_mut_ptr().cast());
                for (p, sums) in sums_of_strip.chunks_exact_mut(tile).enumerate() {
                    let w = packed_v[p * E::ROWS * KEYS..].as_ptr().cast();
                    E::multiply(Layout::InOut, w, packed_p.as_ptr().cast(), count, false, sums.as_mut_ptr());
                }
            }
        }
    }
    for s in 0..strips {
        let here = E::TOKENS.min(queries - s * E::TOKENS);
        for p in 0..value_panels {
            let rows = E::ROWS.min(d - p * E::ROWS);
            let (from, to) = (totals[(s * value_panels + p) * tile..].as_ptr(), result[p * E::ROWS..].as_mut_ptr());
            // SAFETY: as above; `result` is [TOKENS, d].
            unsafe { E::finish(Layout::InOut, from, rows, here, std::ptr::null(), to, d) };
        }
        for i in 0..here {
            let query = s * E::TOKENS + i;
            let at = place(query);
            // SAFETY: this block alone writes the results of its rows and heads.
            let out = unsafe { out.part(at..at + d) };
            if seen(query).is_empty() {
                out.fill(0.0);
                continue;
            }
            let share = 1.0 / total[query];
            for (out, value) in out.iter_mut().zip(&result[i * d..(i + 1) * d]) {
                *out = value * share;
            }
        }
    }
}
