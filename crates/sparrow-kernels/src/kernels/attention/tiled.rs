//! Attention of rows that share a cache, tile by tile, with online softmax (FlashAttention, arXiv 2205.14135).
//!
//! A task is a key head and a block of rows. The block's *queries*, its rows times the heads that share the key head,
//! are cut into strips of [`STRIP`]; a strip runs down the lanes of vectors, keys and values down the rows of matrices:
//! scores are `[keys, STRIP]` and results `[head_dim, STRIP]`, so that maxima, sums and rescaling need no reduction
//! across lanes. For every tile of [`KEYS`] keys the task packs keys and values once, and every strip passes: scores,
//! softmax, weighted sum. Keys are taken 32 at a time, and what a strip sees nothing of is skipped.
//!
//! Tiles begin at multiples of `KEYS`, so a query's result does not depend on the block it is in.

// Without vector tiers nothing uses this.
#![cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]

use super::AttentionShape;
use crate::kv::{KvRows, KvView};
use crate::parallel::{Scratch, SharedMut};
use crate::rows::Expander;
use crate::simd::lanes::{exp, tanh};
use std::ops::Range;

/// Queries of a strip.
pub(super) const STRIP: usize = 32;
/// Keys of a tile: for 128 elements of bf16, keys and values fill 64 KiB each of L2 and a strip's scores 32 KiB of L1.
pub(super) const KEYS: usize = 256;
/// Keys that are multiplied together.
pub(super) const STEP: usize = 32;
/// Sums have room for heads rounded up to this.
const PADDED: usize = 32;
/// Scores further below the largest weigh nothing: exp(SMALLEST) is the last normal number.
const SMALLEST: f32 = -87.0;

/// One value per query of a strip.
pub(super) type Lanes = [f32; STRIP];

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
    /// For sparse caches.
    pub expand: Expander,
    /// `[rows, heads, head_dim]` of the whole call.
    pub out: SharedMut<'a, f32>,
}

/// Attention of one block.
///
/// # Safety
/// The CPU must have the kernel's features; nobody else may use the results of these rows and heads.
pub(crate) type BlockFn = unsafe fn(&Scratch, &Block);

/// How one tier packs and multiplies. All buffers are aligned to 64 bytes.
///
/// # Safety
/// Implementations may write exactly the stated sizes.
pub(super) unsafe trait Engine {
    /// Bytes of a packed strip, and of the packed keys, values and weights of a tile.
    fn sizes(head_dim: usize) -> [usize; 4];

    /// Packs `count <= STRIP` queries.
    ///
    /// # Safety
    /// The CPU must have the features; so for all methods. The queries must be readable, the strip writable.
    unsafe fn pack_queries(queries: &[*const f32], head_dim: usize, to: *mut u8);

    /// Packs `count <= KEYS` keys, zeros up to a multiple of `STEP`. Scores become right when multiplied by `scales`,
    /// one per key.
    ///
    /// # Safety
    /// See above; rows must be readable.
    unsafe fn pack_keys(rows: &Rows, to: *mut u8, scales: &mut [f32; KEYS]);

    /// As [`pack_keys`](Self::pack_keys): weights must be multiplied by `scales`.
    ///
    /// # Safety
    /// See above; rows must be readable.
    unsafe fn pack_values(rows: &Rows, to: *mut u8, scales: &mut [f32; KEYS]);

    /// Before the first and after the last product of a task.
    ///
    /// # Safety
    /// See above.
    unsafe fn start() {}
    /// See [`start`](Self::start).
    ///
    /// # Safety
    /// See above.
    unsafe fn stop() {}

    /// Scores of keys `range` of the tile, whose ends are multiples of `STEP`.
    ///
    /// # Safety
    /// See above; operands must be packed.
    unsafe fn scores(q: *const u8, keys: *const u8, head_dim: usize, range: Range<usize>, scores: &mut [Lanes; KEYS]);

    /// [`weigh`] with the tier's features.
    ///
    /// # Safety
    /// See above.
    unsafe fn weigh(softmax: &Softmax, strip: &mut Strip, scores: &mut [Lanes; KEYS]);

    /// [`shrink`] with the tier's features.
    ///
    /// # Safety
    /// See above.
    unsafe fn shrink(sums: &mut [Lanes], by: &Lanes);

    /// Adds values times weights of keys `range` of the tile to `sums`, `[head_dim]` rounded up to a multiple of 32;
    /// `packed` has room for the packed weights.
    ///
    /// # Safety
    /// See above; values must be packed.
    unsafe fn accumulate(
        weights: &[Lanes; KEYS],
        packed: *mut u8,
        values: *const u8,
        head_dim: usize,
        range: Range<usize>,
        sums: &mut [Lanes],
    );

    /// Writes sums · shares for each query of a strip.
    ///
    /// # Safety
    /// See above; `head_dim` values must be writable at each of `out`.
    unsafe fn finish(sums: &[Lanes], shares: &Lanes, head_dim: usize, out: &[*mut f32]);
}

/// Stored keys or values.
pub(super) struct Rows {
    pub first: *const u8,
    pub row_bytes: usize,
    pub count: usize,
    pub head_dim: usize,
}

/// What is done to the scores of a tile.
pub(super) struct Softmax<'a> {
    pub scale: f32,
    pub soft_cap: Option<f32>,
    /// The position of the tile's first key.
    pub first: usize,
    /// Keys of the tile to weigh.
    pub range: Range<usize>,
    pub key_scales: &'a [f32; KEYS],
    pub value_scales: &'a [f32; KEYS],
}

/// The state of a strip.
#[derive(Clone)]
#[repr(C, align(64))]
pub(super) struct Strip {
    /// The largest score so far.
    largest: Lanes,
    /// Σ exp(score − largest) so far.
    total: Lanes,
    /// What sums so far must be multiplied by.
    shrink: Lanes,
    /// The positions that each query sees.
    start: [i32; STRIP],
    end: [i32; STRIP],
    /// The positions that some query sees, and those that all see.
    some: Range<usize>,
    all: Range<usize>,
}

/// Turns the scores of a tile into weights exp(score − largest) · value scale, updating the strip.
#[inline(always)]
pub(super) fn weigh(softmax: &Softmax, strip: &mut Strip, scores: &mut [Lanes; KEYS]) {
    let Softmax { scale, soft_cap, first, range, key_scales, value_scales } = softmax;
    let mut largest = strip.largest;
    for step in range.clone().step_by(STEP) {
        let inside = strip.all.start <= first + step && first + step + STEP <= strip.all.end;
        for key in step..step + STEP {
            let (row, by) = (&mut scores[key], scale * key_scales[key]);
            for lane in 0..STRIP {
                row[lane] *= by;
            }
            if let Some(cap) = soft_cap {
                for lane in 0..STRIP {
                    row[lane] = cap * tanh::<true>(row[lane] / cap);
                }
            }
            if !inside {
                let position = (first + key) as i32;
                for lane in 0..STRIP {
                    let sees = (strip.start[lane] <= position) & (position < strip.end[lane]);
                    row[lane] = if sees { row[lane] } else { f32::NEG_INFINITY };
                }
            }
            for lane in 0..STRIP {
                largest[lane] = if row[lane] > largest[lane] { row[lane] } else { largest[lane] };
            }
        }
    }
    let mut shift = largest;
    let mut total = strip.total;
    for lane in 0..STRIP {
        // Nothing but negative infinities so far: weights of 0.
        shift[lane] = if largest[lane] == f32::NEG_INFINITY { 0.0 } else { largest[lane] };
        strip.shrink[lane] = exp::<true>(strip.largest[lane] - shift[lane]);
        total[lane] *= strip.shrink[lane];
    }
    for key in range.clone() {
        let (row, by) = (&mut scores[key], value_scales[key]);
        for lane in 0..STRIP {
            // Results that are no normal numbers take a hundred cycles each, and every masked score would be one.
            let score = row[lane] - shift[lane];
            let weight = exp::<true>(if score < SMALLEST { SMALLEST } else { score });
            let weight = if score < SMALLEST { 0.0 } else { weight };
            total[lane] += weight;
            row[lane] = weight * by;
        }
    }
    (strip.largest, strip.total) = (largest, total);
}

/// Multiplies `sums` by `by`, lane by lane.
#[inline(always)]
pub(super) fn shrink(sums: &mut [Lanes], by: &Lanes) {
    for sum in sums {
        for lane in 0..STRIP {
            sum[lane] *= by[lane];
        }
    }
}

/// # Safety
/// See [`BlockFn`].
pub(super) unsafe fn attend<E: Engine>(memory: &Scratch, block: &Block) {
    let &Block { shape, q, ref rows, head, kv, expand, out } = block;
    let &AttentionShape { heads, kv_heads, head_dim: d, scale, soft_cap } = shape;
    let group = heads / kv_heads;
    let queries = rows.len() * group;
    let strips = queries.div_ceil(STRIP);
    let padded = d.next_multiple_of(PADDED);
    let view = kv(rows.start);
    let row_bytes = view.dtype().row_bytes(d);
    let place = |query: usize| ((rows.start + query / group) * heads + head * group + query % group) * d;

    // Rows of a tile that is not dense in the cache.
    let gathered = if matches!(view.rows, KvRows::Sparse(_)) { (KEYS * row_bytes).next_multiple_of(64) } else { 0 };
    let [q_bytes, key_bytes, value_bytes, weight_bytes] = E::sizes(d).map(|n| n.next_multiple_of(64));
    let lanes = size_of::<Lanes>();
    let sizes = [
        key_bytes,
        value_bytes,
        weight_bytes,
        KEYS * lanes, // scores, then weights
        strips * q_bytes,
        strips * padded * lanes, // sums
        strips * size_of::<Strip>(),
        gathered, // keys
        gathered, // values
    ];
    let mut scratch = memory.take_aligned(sizes.iter().sum());
    let mut rest = &mut scratch[..];
    let [keys, values, packed_weights, scores, packed_q, sums, states, key_rows, value_rows] = sizes.map(|n| {
        let (part, others) = std::mem::take(&mut rest).split_at_mut(n);
        rest = others;
        part
    });
    // SAFETY: all of it is aligned to 64 bytes and of these sizes, and any bytes are valid for these types.
    let (scores, sums, states) = unsafe {
        (
            &mut *scores.as_mut_ptr().cast::<[Lanes; KEYS]>(),
            std::slice::from_raw_parts_mut(sums.as_mut_ptr().cast::<Lanes>(), strips * padded),
            std::slice::from_raw_parts_mut(states.as_mut_ptr().cast::<Strip>(), strips),
        )
    };
    sums.as_flattened_mut().fill(0.0);
    for (s, state) in states.iter_mut().enumerate() {
        let first = s * STRIP;
        let here = STRIP.min(queries - first);
        let mut pointers = [std::ptr::null(); STRIP];
        *state = Strip {
            largest: [f32::NEG_INFINITY; STRIP],
            total: [0.0; STRIP],
            shrink: [1.0; STRIP],
            start: [0; STRIP],
            end: [0; STRIP],
            some: Range { start: usize::MAX, end: 0 },
            all: 0..usize::MAX,
        };
        for lane in 0..STRIP {
            // Lanes without a query repeat the last.
            let query = first + lane.min(here - 1);
            let view = kv(rows.start + query / group);
            pointers[lane] = q[place(query)..][..d].as_ptr();
            (state.start[lane], state.end[lane]) = (view.start as i32, view.len as i32);
            state.all = state.all.start.max(view.start)..state.all.end.min(view.len);
            if view.start < view.len {
                state.some = state.some.start.min(view.start)..state.some.end.max(view.len);
            }
        }
        // SAFETY: the caller vouches for the features; the queries have d values.
        unsafe { E::pack_queries(&pointers[..here], d, packed_q[s * q_bytes..].as_mut_ptr()) };
    }
    let start = states.iter().map(|s| s.some.start).min().unwrap_or(0);
    let end = states.iter().map(|s| s.some.end).max().unwrap_or(0);
    let (mut key_scales, mut value_scales) = ([1.0; KEYS], [1.0; KEYS]);
    // SAFETY: as above.
    unsafe { E::start() };
    for first in (start / KEYS * KEYS..end).step_by(KEYS) {
        let from = start.saturating_sub(first) / STEP * STEP;
        let count = KEYS.min(end - first);
        let tile = view.dense_rows(expand, head, d, first..first + count, [&mut *key_rows, &mut *value_rows]);
        let [key_tile, value_tile] = tile.map(|first| Rows { first, row_bytes, count, head_dim: d });
        // SAFETY: as above; these rows are in the cache.
        unsafe {
            E::pack_keys(&key_tile, keys.as_mut_ptr(), &mut key_scales);
            E::pack_values(&value_tile, values.as_mut_ptr(), &mut value_scales);
        }
        for (s, state) in states.iter_mut().enumerate() {
            let low = state.some.start.clamp(first + from, first + count) - first;
            let high = state.some.end.clamp(first + from, first + count) - first;
            if low >= high {
                continue;
            }
            let range = low / STEP * STEP..high.next_multiple_of(STEP);
            let sums = &mut sums[s * padded..(s + 1) * padded];
            let (key_scales, value_scales) = (&key_scales, &value_scales);
            let softmax = Softmax { scale, soft_cap, first, range: range.clone(), key_scales, value_scales };
            // SAFETY: as above; the operands are packed.
            unsafe {
                E::scores(packed_q[s * q_bytes..].as_ptr(), keys.as_ptr(), d, range.clone(), scores);
                E::weigh(&softmax, state, scores);
                if state.shrink != [1.0; STRIP] {
                    E::shrink(sums, &state.shrink);
                }
                let packed = packed_weights.as_mut_ptr();
                E::accumulate(scores, packed, values.as_ptr(), d, range, sums);
            }
        }
    }
    // SAFETY: as above.
    unsafe { E::stop() };
    for (s, state) in states.iter().enumerate() {
        let first = s * STRIP;
        let here = STRIP.min(queries - first);
        let mut pointers = [std::ptr::null_mut(); STRIP];
        let mut shares = [0.0; STRIP];
        for lane in 0..here {
            // SAFETY: this block alone writes the results of its rows and heads.
            let result = unsafe { out.part(place(first + lane)..place(first + lane) + d) };
            pointers[lane] = result.as_mut_ptr();
            if state.start[lane] < state.end[lane] {
                shares[lane] = 1.0 / state.total[lane];
            }
        }
        // SAFETY: as above; each result has d values.
        unsafe { E::finish(&sums[s * padded..(s + 1) * padded], &shares, d, &pointers[..here]) };
        for lane in (0..here).filter(|&lane| state.start[lane] == state.end[lane]) {
            // SAFETY: as above.
            unsafe { out.part(place(first + lane)..place(first + lane) + d) }.fill(0.0);
        }
    }
}
