//! From scores to a mask: which of a layer's neurons, or inputs, are active for one token.

use sparrow_kernels::Compute;

use crate::backend::Threshold;

/// Every magnitude is above it.
pub const EVERYTHING: Threshold = Threshold::Fixed(-1.0);

/// Which numbers of a row are compared with a threshold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Of {
    /// The scores.
    Scores,
    /// Their magnitudes.
    Magnitudes,
}

/// Writes the mask of a row of `scores` under `rule`; `spare` is working memory, `scores` may be overwritten.
pub fn mask(compute: &Compute, rule: Threshold, of: Of, scores: &mut [f32], spare: &mut Vec<f32>, mask: &mut [u64]) {
    let magnitude = of == Of::Magnitudes;
    if magnitude && !matches!(rule, Threshold::Fixed(_)) {
        scores.iter_mut().for_each(|s| *s = s.abs());
    }
    let n = scores.len();
    match (rule.keep(n), rule.resolved()) {
        (Some(0), _) => mask.fill(0),
        // The k-th largest itself is kept: the comparison is strict, so go one step below it.
        (Some(keep), _) => {
            compute.mask_above(scores, compute.kth_largest(scores, keep, spare).next_down(), false, mask);
        }
        (None, Threshold::Fixed(t)) => compute.mask_above(scores, t, magnitude, mask),
        (None, Threshold::MeanStd(k)) => {
            let (mean, std) = compute.mean_std(scores);
            compute.mask_above(scores, mean + k * std, false, mask);
        }
        (None, rule) => unreachable!("{rule} goes by order, or resolves to mean + k·std"),
    }
}
