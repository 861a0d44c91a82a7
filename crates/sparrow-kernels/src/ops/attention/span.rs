//! Attention of one row's query heads that share a key head over a span of positions: keys and values are read once.

#[cfg(target_arch = "x86_64")]
use crate::dtype::{I8, code_size, quantized::int8_scale};
#[cfg(target_arch = "x86_64")]
use crate::ops::softmax::lanes::{exp_sum, max_ignoring_nan, scale_scores};
#[cfg(target_arch = "x86_64")]
use crate::simd::vector::{Vector, place};

/// Positions whose scores are computed before their values are added: their keys and values, 32 KiB each for 128 elements of
/// bf16, pass through L2.
const BLOCK: usize = 128;
/// Room for scores past the block: keys are multiplied several at a time.
const SPARE: usize = 8;
/// Positions whose values stay in L1 while all heads and columns pass.
#[cfg(target_arch = "x86_64")]
const STRIPE: usize = 32;
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
    /// The key and the value of the first position; `row_bytes` further the next.
    pub keys: *const u8,
    pub values: *const u8,
    pub row_bytes: usize,
    /// Positions, above 0.
    pub count: usize,
    pub scale: f32,
    pub soft_cap: Option<f32>,
    /// Σ exp(score − largest) · value, `[group, head_dim]`.
    pub out: *mut f32,
    /// The largest score, then Σ exp(score − largest), for each of the group.
    pub stats: *mut [f32; 2],
    /// [`scratch`] values.
    pub scratch: *mut f32,
}

/// Values of scratch memory that a span needs.
pub(crate) fn scratch(group: usize, head_dim: usize) -> usize {
    group * (2 * head_dim.next_multiple_of(PAIR) + BLOCK + SPARE)
}

/// # Safety
/// The CPU must have the kernel's features, and the pointers be valid for the shapes.
pub(crate) type SpanFn = unsafe fn(&Span);

/// # Safety
/// See [`SpanFn`]; `X`'s features; to be called from a function with these.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(super) unsafe fn span<X: Vector, const D: u8>(a: &Span) {
    let (d, group) = (a.head_dim, a.group);
    let padded = d.next_multiple_of(2 * X::LANES);
    // SAFETY: the scratch memory has room for these three, as `scratch` counts.
    let (q, sums, scores) = unsafe {
        let q = std::slice::from_raw_parts_mut(a.scratch, group * padded);
        let sums = std::slice::from_raw_parts_mut(a.scratch.add(group * padded), group * padded);
        let scores = std::slice::from_raw_parts_mut(a.scratch.add(2 * group * padded), group * (BLOCK + SPARE));
        (q, sums, scores)
    };
    // SAFETY: one per head of the group, by the contract.
    let stats = unsafe { std::slice::from_raw_parts_mut(a.stats, group) };
    q.fill(0.0);
    for (t, packed) in q.chunks_exact_mut(padded).enumerate() {
        for i in 0..d {
            let pair = i / (2 * X::LANES) * (2 * X::LANES);
            // SAFETY: head t has d elements.
            packed[pair + place::<D>(i - pair, X::LANES)] = unsafe { *a.q.add(t * d + i) };
        }
    }
    sums.fill(0.0);
    stats.fill([f32::NEG_INFINITY, 0.0]);
    let mut first = 0;
    while first < a.count {
        let count = BLOCK.min(a.count - first);
        // SAFETY: positions first..first + count are in the span.
        let (keys, values) = unsafe { (a.keys.add(first * a.row_bytes), a.values.add(first * a.row_bytes)) };
        let mut j = 0;
        while j < count {
            let mut t = 0;
            let mut rows = 4;
            while t < group {
                let left = group - t;
                let at = t * (BLOCK + SPARE) + j;
                // SAFETY: as above; heads t.. exist, and rows past the block are not read.
                unsafe {
                    let (q, to) = (q.as_ptr().add(t * padded), scores.as_mut_ptr().add(at));
                    if X::LANES == 16 {
                        rows = if group == 4 || group > 6 { 4 } else { 8 };
                        match (rows, left) {
                            (8, 1) => products::<X, D, 8, 1>(a, keys, j, count, q, padded, to),
                            (8, 2) => products::<X, D, 8, 2>(a, keys, j, count, q, padded, to),
                            (8, _) => products::<X, D, 8, 3>(a, keys, j, count, q, padded, to),
                            (_, 1) => products::<X, D, 4, 1>(a, keys, j, count, q, padded, to),
                            (_, 2) => products::<X, D, 4, 2>(a, keys, j, count, q, padded, to),
                            (_, 3) => products::<X, D, 4, 3>(a, keys, j, count, q, padded, to),
                            (_, _) => products::<X, D, 4, 4>(a, keys, j, count, q, padded, to),
                        }
                        t += left.min(if rows == 8 { 3 } else { 4 });
                    } else {
                        match left {
                            1 => products::<X, D, 4, 1>(a, keys, j, count, q, padded, to),
                            _ => products::<X, D, 4, 2>(a, keys, j, count, q, padded, to),
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
                for (j, score) in scores.iter_mut().enumerate() {
                    // SAFETY: position j is in the block, and its scale follows the padded integers.
                    *score *= unsafe { int8_scale(keys.add(j * a.row_bytes), d) };
                }
            }
            scale_scores(scores, a.scale, a.soft_cap);
            let [largest, total] = &mut stats[t];
            let now = max_ignoring_nan(scores).max(*largest);
            if now > *largest {
                let shrink = (*largest - now).exp();
                *total *= shrink;
                sums[t * padded..(t + 1) * padded].iter_mut().for_each(|v| *v *= shrink);
                *largest = now;
            }
            // Nothing but negative infinities so far: weights of 0.
            *total += exp_sum(scores, if now == f32::NEG_INFINITY { 0.0 } else { now });
            if D == I8 {
                for (j, weight) in scores.iter_mut().enumerate() {
                    // SAFETY: as above.
                    *weight *= unsafe { int8_scale(values.add(j * a.row_bytes), d) };
                }
            }
        }
        let mut j = 0;
        while j < count {
            let rows = STRIPE.min(count - j);
            let mut t = 0;
            while t < group {
                let left = (group - t).min(4);
                // SAFETY: positions j..j + rows of the block, heads t..t + left.
                unsafe {
                    let from = values.add(j * a.row_bytes);
                    let weights = scores.as_ptr().add(t * (BLOCK + SPARE) + j);
                    let sums = sums.as_mut_ptr().add(t * padded);
                    match (X::LANES, left) {
                        (_, 1) => weigh::<X, D, 4, 1>(a, from, rows, weights, sums, padded),
                        (16, 2) => weigh::<X, D, 4, 2>(a, from, rows, weights, sums, padded),
                        (16, 3) => weigh::<X, D, 4, 3>(a, from, rows, weights, sums, padded),
                        (16, _) => weigh::<X, D, 2, 4>(a, from, rows, weights, sums, padded),
                        (_, 2) => weigh::<X, D, 2, 2>(a, from, rows, weights, sums, padded),
                        (_, 3) => weigh::<X, D, 1, 3>(a, from, rows, weights, sums, padded),
                        (_, _) => weigh::<X, D, 1, 4>(a, from, rows, weights, sums, padded),
                    }
                }
                t += left;
            }
            j += rows;
        }
        first += count;
    }
    for t in 0..group {
        for i in 0..d {
            let pair = i / (2 * X::LANES) * (2 * X::LANES);
            // SAFETY: out is [group, head_dim].
            unsafe { *a.out.add(t * d + i) = sums[t * padded + pair + place::<D>(i - pair, X::LANES)] };
        }
    }
}

/// Products of keys `j..j + R` of a block of `count` with `M` heads; rows of `scores` are BLOCK + SPARE apart. Keys past the
/// block repeat the last.
///
/// # Safety
/// See [`span`]; `j < count`.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn products<X: Vector, const D: u8, const R: usize, const M: usize>(
    a: &Span,
    keys: *const u8,
    j: usize,
    count: usize,
    q: *const f32,
    padded: usize,
    scores: *mut f32,
) {
    let step = 2 * X::LANES;
    let full = a.head_dim / step * step;
    // SAFETY: rows are in the block, elements below head_dim, and the packed heads have `padded` elements.
    unsafe {
        let mut rows = [keys; R];
        for (r, row) in rows.iter_mut().enumerate() {
            *row = keys.add((j + r).min(count - 1) * a.row_bytes);
        }
        let mut sums = [[X::zero(); M]; R];
        let mut i = 0;
        while i < padded {
            let mut k = [[X::zero(); 2]; R];
            for r in 0..R {
                let from = rows[r].add(i * code_size(D));
                if i < full {
                    prefetch(from);
                    if step * code_size(D) > 64 {
                        prefetch(from.wrapping_add(64));
                    }
                    k[r] = X::pair::<D>(from);
                } else {
                    k[r] = X::pair_part::<D>(from, a.head_dim - full);
                }
            }
            for t in 0..M {
                let x = q.add(t * padded + i);
                let (even, odd) = (X::load(x), X::load(x.add(X::LANES)));
                for r in 0..R {
                    sums[r][t] = X::fma(k[r][1], odd, X::fma(k[r][0], even, sums[r][t]));
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

/// Adds the values of `rows` positions, weighted, to the sums of `M` heads, `C` pairs of vectors at a time.
///
/// # Safety
/// See [`span`].
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn weigh<X: Vector, const D: u8, const C: usize, const M: usize>(
    a: &Span,
    values: *const u8,
    rows: usize,
    weights: *const f32,
    sums: *mut f32,
    padded: usize,
) {
    let step = 2 * X::LANES;
    let full = a.head_dim / step * step;
    let mut i = 0;
    // SAFETY: columns i.. are within the padded sums, and whole pairs within the rows.
    unsafe {
        while i + C * step <= full {
            columns::<X, D, C, M>(a, values, rows, weights, sums, padded, i);
            i += C * step;
        }
        while i < padded {
            columns::<X, D, 1, M>(a, values, rows, weights, sums, padded, i);
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
unsafe fn columns<X: Vector, const D: u8, const C: usize, const M: usize>(
    a: &Span,
    values: *const u8,
    rows: usize,
    weights: *const f32,
    sums: *mut f32,
    padded: usize,
    i: usize,
) {
    let step = 2 * X::LANES;
    let part = if i + step > a.head_dim { a.head_dim - i } else { 0 };
    // SAFETY: the caller guarantees the columns; rows and weights are counted.
    unsafe {
        let mut acc = [[[X::zero(); 2]; C]; M];
        for t in 0..M {
            for c in 0..C {
                let from = sums.add(t * padded + i + c * step);
                acc[t][c] = [X::load(from), X::load(from.add(X::LANES))];
            }
        }
        let mut row = values.add(i * code_size(D));
        for j in 0..rows {
            for c in 0..C {
                let from = row.add(c * step * code_size(D));
                let v = if part > 0 {
                    X::pair_part::<D>(from, part)
                } else {
                    prefetch(from);
                    if step * code_size(D) > 64 {
                        prefetch(from.wrapping_add(64));
                    }
                    X::pair::<D>(from)
                };
                for t in 0..M {
                    let w = X::splat(*weights.add(t * (BLOCK + SPARE) + j));
                    acc[t][c] = [X::fma(w, v[0], acc[t][c][0]), X::fma(w, v[1], acc[t][c][1])];
                }
            }
            row = row.wrapping_add(a.row_bytes);
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
fn prefetch(p: *const u8) {
    use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
    // SAFETY: a prefetch never faults.
    unsafe { _mm_prefetch::<_MM_HINT_T1>(p.wrapping_add(AHEAD).cast()) };
}
