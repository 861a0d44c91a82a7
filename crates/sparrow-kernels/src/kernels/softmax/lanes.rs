//! Softmax without branches, for the compiler to vectorise with fused multiply-add.

use crate::simd::lanes::{SUMS, exp, fold, max, sum_by, tanh};

#[inline(always)]
pub(super) fn softmax(x: &mut [f32]) {
    let max = max(x);
    for v in x.iter_mut() {
        *v = exp::<true>(*v - max);
    }
    let scale = 1.0 / sum_by(x, |v| v);
    for v in x {
        *v *= scale;
    }
}

/// xᵢ ← exp(xᵢ − shift); returns their sum.
#[inline(always)]
pub(crate) fn exp_sum(x: &mut [f32], shift: f32) -> f32 {
    for v in x.iter_mut() {
        *v = exp::<true>(*v - shift);
    }
    sum_by(x, |v| v)
}

/// sᵢ ← sᵢ · scale, then c · tanh(sᵢ / c) with a soft cap c.
#[inline(always)]
pub(crate) fn scale_scores(scores: &mut [f32], scale: f32, cap: Option<f32>) {
    if let Some(cap) = cap {
        let scale = scale / cap;
        for s in scores {
            *s = cap * tanh::<true>(*s * scale);
        }
    } else {
        for s in scores {
            *s *= scale;
        }
    }
}

/// The largest value that is no NaN; −∞ for none.
#[inline(always)]
pub(crate) fn max_ignoring_nan(x: &[f32]) -> f32 {
    let mut best = [f32::NEG_INFINITY; SUMS];
    let (chunks, rest) = x.as_chunks::<SUMS>();
    for chunk in chunks {
        for lane in 0..SUMS {
            best[lane] = if chunk[lane] > best[lane] { chunk[lane] } else { best[lane] };
        }
    }
    for (best, &v) in best.iter_mut().zip(rest) {
        *best = if v > *best { v } else { *best };
    }
    fold(best, |a, b| if b > a { b } else { a })
}
