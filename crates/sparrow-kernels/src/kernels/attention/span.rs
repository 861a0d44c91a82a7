//! Attention of one row's query heads that share a key head over a span of positions: keys and values are read once.

#[cfg(target_arch = "x86_64")]
use crate::dtype::{I8, code_size, layout::int8_scale};
#[cfg(target_arch = "x86_64")]
use crate::kernels::softmax::lanes::{exp_sum, max_ignoring_nan, scale_scores};
use crate::kv::{self, Piece, PieceRows};
#[cfg(target_arch = "x86_64")]
use crate::simd::vector::{Vector, place};
#[cfg(target_arch = "x86_64")]
use std::ops::Range;

/// Positions whose scores are computed before their values are added: their keys and values, 32 KiB each for 128
/// elements of bf16, pass through L2.
pub(super) const BLOCK: usize = 128;
/// Room for scores past the block: keys are multiplied several at a time.
const SPARE: usize = 8;
/// Positions whose values stay in L1 while all heads and columns pass.
#[cfg(target_arch = "x86_64")]
const STRIPE: usize = 32;
/// Scores may exceed the shift by as much: exp of it times many positions is far from overflow, and as exact.
#[cfg(target_arch = "x86_64")]
const SLACK: f32 = 8.0;
/// Bytes by which a stream is asked for ahead: beyond the next page, where hardware prefetch starts anew.
#[cfg(target_arch = "x86_64")]
const AHEAD: usize = 4096;
/// Elements to which heads are padded: a pair of the widest vectors.
const PAIR: usize = 32;

/// The arguments of a [`SpanFn`].
pub(crate) struct Span {
    /// `[group, head_dim]`.
    pub q: *const f32,
    pub group: usize,
    pub head_dim: usize,
    /// The positions, at least one.
    pub pieces: [Piece; 3],
    /// Of a dense row.
    pub row_bytes: usize,
    pub scale: f32,
    pub soft_cap: Option<f32>,
    /// Σ exp(score − shift) · value, `[group, head_dim]`.
    pub out: *mut f32,
    /// The shift, about the largest score, then Σ exp(score − shift), for each of the group.
    pub stats: *mut [f32; 2],
    /// [`scratch`] values, then [`expanded`] values if a piece is packed.
    pub scratch: *mut f32,
}

/// Values of scratch memory that a span needs.
pub(crate) fn scratch(group: usize, head_dim: usize) -> usize {
    group * (2 * head_dim.next_multiple_of(PAIR) + BLOCK + SPARE)
}

/// Values of scratch memory that a span needs to read packed rows: the keys and values of a block of these.
pub(crate) fn expanded(row_bytes: usize) -> usize {
    (2 * kv::BLOCK * row_bytes).div_ceil(size_of::<f32>())
}

impl Span {
    /// Positions of `piece` from `first` on, some of them: their number, and the first key and value as rows of a dense
    /// cache, packed ones expanded.
    ///
    /// # Safety
    /// See [`SpanFn`]; `first` must be in the piece.
    pub(super) unsafe fn dense_rows(&self, piece: &Piece, first: usize) -> (usize, *const u8, *const u8) {
        // SAFETY: these positions are in the piece, and the scratch memory has room for a block of keys and one of
        // values.
        unsafe {
            match piece.rows {
                PieceRows::Dense { keys, values } => {
                    let skip = first * self.row_bytes;
                    (BLOCK.min(piece.count - first), keys.add(skip), values.add(skip))
                }
                PieceRows::Packed { keys, values } => {
                    let to = self.scratch.add(scratch(self.group, self.head_dim)).cast::<u8>();
                    let (keys, values) =
                        (keys.rows(first, piece.count - first), values.rows(first, piece.count - first));
                    let to = [to, to.add(kv::BLOCK * self.row_bytes)];
                    keys.expand(to[0], self.row_bytes);
                    values.expand(to[1], self.row_bytes);
                    (keys.count, to[0], to[1])
                }
            }
        }
    }
}

/// # Safety
/// The CPU must have the kernel's features, and the pointers be valid for the shapes.
pub(crate) type SpanFn = unsafe fn(&Span);

/// Stored keys, or values, of some positions, read as pairs of vectors.
///
/// # Safety
/// For all methods: the CPU must have the features of `X`, and the rows be readable.
#[cfg(target_arch = "x86_64")]
pub(super) trait Source<X: Vector>: Copy {
    /// What is known of a row that is being read.
    type Cursor: Copy;

    /// Row `row` from element `i` on, a multiple of a pair of vectors.
    ///
    /// # Safety
    /// See above; there must be such a row.
    unsafe fn at(self, row: usize, i: usize) -> Self::Cursor;

    /// The pair at element `i`, in the order of [`place`]; only `part` elements if that is above 0. Of int8 only the
    /// integers. What follows is asked for.
    ///
    /// # Safety
    /// See above; pairs must be read in order from the one that the cursor was made for.
    unsafe fn pair(self, cursor: &mut Self::Cursor, i: usize, part: usize) -> [X::V; 2];

    /// The scale of a row of int8.
    ///
    /// # Safety
    /// See above; there must be such a row.
    unsafe fn scale(self, row: usize) -> f32;
}

/// Rows of a dense cache.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
pub(super) struct Dense<const D: u8> {
    pub first: *const u8,
    pub row_bytes: usize,
    pub head_dim: usize,
}

#[cfg(target_arch = "x86_64")]
impl<X: Vector, const D: u8> Source<X> for Dense<D> {
    type Cursor = *const u8;

    #[inline(always)]
    unsafe fn at(self, row: usize, _: usize) -> *const u8 {
        self.first.wrapping_add(row * self.row_bytes)
    }

    #[inline(always)]
    unsafe fn pair(self, cursor: &mut *const u8, i: usize, part: usize) -> [X::V; 2] {
        // SAFETY: the caller guarantees the elements.
        unsafe {
            let from = cursor.add(i * code_size(D));
            if part > 0 {
                return X::pair_part::<D>(from, part);
            }
            prefetch(from);
            if 2 * X::LANES * code_size(D) > 64 {
                prefetch(from.wrapping_add(64));
            }
            X::pair::<D>(from)
        }
    }

    #[inline(always)]
    unsafe fn scale(self, row: usize) -> f32 {
        // SAFETY: the scale follows the padded integers.
        unsafe { int8_scale(self.first.add(row * self.row_bytes), self.head_dim) }
    }
}

/// The state of a span.
#[cfg(target_arch = "x86_64")]
pub(super) struct State<'a> {
    /// Elements of a head with its padding.
    padded: usize,
    /// `[group, padded]`.
    q: &'a mut [f32],
    /// `[group, padded]`.
    sums: &'a mut [f32],
    /// `[group, BLOCK + SPARE]`.
    scores: &'a mut [f32],
    /// `[group]`.
    stats: &'a mut [[f32; 2]],
}

/// # Safety
/// See [`SpanFn`]; `X`'s features; to be called from a function with these.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(super) unsafe fn span<X: Vector, const D: u8>(a: &Span) {
    // SAFETY: the contract is the caller's; positions are read from first to last.
    unsafe {
        let mut state = begin::<X, D>(a);
        for piece in &a.pieces {
            let mut first = 0;
            while first < piece.count {
                let (count, keys, values) = a.dense_rows(piece, first);
                let [keys, values] =
                    [keys, values].map(|first| Dense::<D> { first, row_bytes: a.row_bytes, head_dim: a.head_dim });
                attend::<X, Dense<D>, D>(a, &mut state, keys, values, count);
                first += count;
            }
        }
        finish::<X, D>(a, &state);
    }
}

/// The state before the first position.
///
/// # Safety
/// See [`span`].
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(super) unsafe fn begin<'a, X: Vector, const D: u8>(a: &'a Span) -> State<'a> {
    let (d, group) = (a.head_dim, a.group);
    let padded = d.next_multiple_of(2 * X::LANES);
    // SAFETY: the scratch memory has room for the first three, as `scratch` counts; one pair of stats per head of the
    // group, by the contract.
    let state = unsafe {
        State {
            padded,
            q: std::slice::from_raw_parts_mut(a.scratch, group * padded),
            sums: std::slice::from_raw_parts_mut(a.scratch.add(group * padded), group * padded),
            scores: std::slice::from_raw_parts_mut(a.scratch.add(2 * group * padded), group * (BLOCK + SPARE)),
            stats: std::slice::from_raw_parts_mut(a.stats, group),
        }
    };
    state.q.fill(0.0);
    for (t, packed) in state.q.chunks_exact_mut(padded).enumerate() {
        for i in 0..d {
            let pair = i / (2 * X::LANES) * (2 * X::LANES);
            // SAFETY: head t has d elements.
            packed[pair + place::<D>(i - pair, X::LANES)] = unsafe { *a.q.add(t * d + i) };
        }
    }
    state.sums.fill(0.0);
    state.stats.fill([f32::NEG_INFINITY, 0.0]);
    state
}

/// Writes the sums.
///
/// # Safety
/// See [`span`].
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(super) unsafe fn finish<X: Vector, const D: u8>(a: &Span, state: &State) {
    for t in 0..a.group {
        for i in 0..a.head_dim {
            let pair = i / (2 * X::LANES) * (2 * X::LANES);
            let sum = state.sums[t * state.padded + pair + place::<D>(i - pair, X::LANES)];
            // SAFETY: out is [group, head_dim].
            unsafe { *a.out.add(t * a.head_dim + i) = sum };
        }
    }
}

/// Adds `count <= BLOCK` positions.
///
/// # Safety
/// See [`span`]; the sources must have as many rows.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(super) unsafe fn attend<X: Vector, S: Source<X>, const D: u8>(
    a: &Span,
    state: &mut State,
    keys: S,
    values: S,
    count: usize,
) {
    let (d, group) = (a.head_dim, a.group);
    let State { padded, q, sums, scores, stats } = state;
    let padded = *padded;
    let mut j = 0;
    while j < count {
        let mut t = 0;
        let mut rows = 4;
        while t < group {
            let left = group - t;
            let at = t * (BLOCK + SPARE) + j;
            // SAFETY: heads t.. exist, and rows past the block are not read.
            unsafe {
                let (q, to) = (q.as_ptr().add(t * padded), scores.as_mut_ptr().add(at));
                if X::LANES == 16 {
                    rows = if group == 4 || group > 6 { 4 } else { 8 };
                    match (rows, left) {
                        (8, 1) => products::<X, S, 8, 1>(d, keys, j, count, q, padded, to),
                        (8, 2) => products::<X, S, 8, 2>(d, keys, j, count, q, padded, to),
                        (8, _) => products::<X, S, 8, 3>(d, keys, j, count, q, padded, to),
                        (_, 1) => products::<X, S, 4, 1>(d, keys, j, count, q, padded, to),
                        (_, 2) => products::<X, S, 4, 2>(d, keys, j, count, q, padded, to),
                        (_, 3) => products::<X, S, 4, 3>(d, keys, j, count, q, padded, to),
                        (_, _) => products::<X, S, 4, 4>(d, keys, j, count, q, padded, to),
                    }
                    t += left.min(if rows == 8 { 3 } else { 4 });
                } else {
                    match left {
                        1 => products::<X, S, 4, 1>(d, keys, j, count, q, padded, to),
                        _ => products::<X, S, 4, 2>(d, keys, j, count, q, padded, to),
                    }
                    t += left.min(2);
                }
            }
        }
        j += rows;
    }
    for t in 0..group {
        let scores = &mut scores[t * (BLOCK + SPARE)..][..count];
        if D == I8 {
            // SAFETY: there are `count` keys.
            scores.iter_mut().enumerate().for_each(|(j, score)| *score *= unsafe { keys.scale(j) });
        }
        scale_scores(scores, a.scale, a.soft_cap);
        let shrink = to_weights(scores, &mut stats[t]);
        if D == I8 {
            // SAFETY: there are `count` values.
            scores.iter_mut().enumerate().for_each(|(j, weight)| *weight *= unsafe { values.scale(j) });
        }
        if shrink < 1.0 {
            sums[t * padded..(t + 1) * padded].iter_mut().for_each(|v| *v *= shrink);
        }
    }
    let mut j = 0;
    while j < count {
        let rows = j..count.min(j + STRIPE);
        let mut t = 0;
        while t < group {
            let left = (group - t).min(4);
            // SAFETY: these rows exist, and heads t..t + left.
            unsafe {
                let weights = scores.as_ptr().add(t * (BLOCK + SPARE));
                let sums = sums.as_mut_ptr().add(t * padded);
                let rows = rows.clone();
                match (X::LANES, left) {
                    (_, 1) => weigh::<X, S, 4, 1>(d, values, rows, weights, sums, padded),
                    (16, 2) => weigh::<X, S, 4, 2>(d, values, rows, weights, sums, padded),
                    (16, 3) => weigh::<X, S, 4, 3>(d, values, rows, weights, sums, padded),
                    (16, _) => weigh::<X, S, 2, 4>(d, values, rows, weights, sums, padded),
                    (_, 2) => weigh::<X, S, 2, 2>(d, values, rows, weights, sums, padded),
                    (_, 3) => weigh::<X, S, 1, 3>(d, values, rows, weights, sums, padded),
                    (_, _) => weigh::<X, S, 1, 4>(d, values, rows, weights, sums, padded),
                }
            }
            t += left;
        }
        j += STRIPE;
    }
}

/// Turns a head's scores into exp(score − shift), and counts these: `stats` are the shift and the total. The shift
/// follows the largest score only where it must, so sums are hardly ever rescaled. Returns by what they must be
/// multiplied, at most 1.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(super) fn to_weights(scores: &mut [f32], [shift, total]: &mut [f32; 2]) -> f32 {
    let largest = max_ignoring_nan(scores);
    let mut shrink = 1.0;
    if largest > *shift + SLACK {
        shrink = (*shift - largest).exp();
        *shift = largest;
        *total *= shrink;
    }
    // Nothing but negative infinities so far: weights of 0.
    *total += exp_sum(scores, if *shift == f32::NEG_INFINITY { 0.0 } else { *shift });
    shrink
}

/// Products of keys `j..j + R` of `count` with `M` heads of `d` elements; rows of `scores` are BLOCK + SPARE apart.
/// Keys past the last repeat it.
///
/// # Safety
/// See [`span`]; `j < count`.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn products<X: Vector, S: Source<X>, const R: usize, const M: usize>(
    d: usize,
    keys: S,
    j: usize,
    count: usize,
    q: *const f32,
    padded: usize,
    scores: *mut f32,
) {
    let step = 2 * X::LANES;
    let full = d / step * step;
    // SAFETY: rows are in the block, elements below d, and the packed heads have `padded` elements.
    unsafe {
        let mut rows = [keys.at(j, 0); R];
        for (r, row) in rows.iter_mut().enumerate() {
            *row = keys.at((j + r).min(count - 1), 0);
        }
        let mut sums = [[X::zero(); M]; R];
        let mut i = 0;
        while i < padded {
            let part = if i < full { 0 } else { d - full };
            for r in 0..R {
                let k = keys.pair(&mut rows[r], i, part);
                for t in 0..M {
                    let x = q.add(t * padded + i);
                    let (even, odd) = (X::load(x), X::load(x.add(X::LANES)));
                    sums[r][t] = X::fma(k[1], odd, X::fma(k[0], even, sums[r][t]));
                }
            }
            i += step;
        }
        for t in 0..M {
            for r in (0..R).step_by(4) {
                let four = X::sum4([sums[r][t], sums[r + 1][t], sums[r + 2][t], sums[r + 3][t]]);
                scores.add(t * (BLOCK + SPARE) + r).cast::<[f32; 4]>().write_unaligned(four);
            }
        }
    }
}

/// Adds the values of `rows`, weighted, to the sums of `M` heads of `d` elements, `C` pairs of vectors at a time.
///
/// # Safety
/// See [`span`].
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn weigh<X: Vector, S: Source<X>, const C: usize, const M: usize>(
    d: usize,
    values: S,
    rows: Range<usize>,
    weights: *const f32,
    sums: *mut f32,
    padded: usize,
) {
    let step = 2 * X::LANES;
    let full = d / step * step;
    let mut i = 0;
    // SAFETY: columns i.. are within the padded sums, and whole pairs within the rows.
    unsafe {
        while i + C * step <= full {
            columns::<X, S, C, M>(d, values, rows.clone(), weights, sums, padded, i);
            i += C * step;
        }
        while i < padded {
            columns::<X, S, 1, M>(d, values, rows.clone(), weights, sums, padded, i);
            i += step;
        }
    }
}

/// Columns `i..` of [`weigh`], `C` pairs of vectors.
///
/// # Safety
/// See [`span`]; the columns must be within the padded head, and for `C` above 1 within the head.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn columns<X: Vector, S: Source<X>, const C: usize, const M: usize>(
    d: usize,
    values: S,
    rows: Range<usize>,
    weights: *const f32,
    sums: *mut f32,
    padded: usize,
    i: usize,
) {
    let step = 2 * X::LANES;
    let part = if i + step > d { d - i } else { 0 };
    // SAFETY: the caller guarantees the columns; rows and weights are counted.
    unsafe {
        let mut acc = [[[X::zero(); 2]; C]; M];
        for t in 0..M {
            for c in 0..C {
                let from = sums.add(t * padded + i + c * step);
                acc[t][c] = [X::load(from), X::load(from.add(X::LANES))];
            }
        }
        for j in rows {
            let mut row = values.at(j, i);
            for c in 0..C {
                let v = values.pair(&mut row, i + c * step, part);
                for t in 0..M {
                    let w = X::splat(*weights.add(t * (BLOCK + SPARE) + j));
                    acc[t][c] = [X::fma(w, v[0], acc[t][c][0]), X::fma(w, v[1], acc[t][c][1])];
                }
            }
        }
        for t in 0..M {
            for c in 0..C {
                let to = sums.add(t * padded + i + c * step);
                X::store(to, acc[t][c][0]);
                X::store(to.add(X::LANES), acc[t][c][1]);
            }
        }
    }
}

/// Asks for the line [`AHEAD`] of `p`, into L2.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(super) fn prefetch(p: *const u8) {
    use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
    // SAFETY: a prefetch never faults.
    unsafe { _mm_prefetch::<_MM_HINT_T1>(p.wrapping_add(AHEAD).cast()) };
}
