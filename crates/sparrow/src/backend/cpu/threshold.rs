//! From scores to a mask: which of a layer's neurons, or inputs, are active for one token.

use sparrow_kernels::Compute;

use crate::backend::Threshold;

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
    let keep = match rule {
        Threshold::Fixed(t) => return compute.mask_above(scores, t, magnitude, mask),
        Threshold::MeanStd(_) | Threshold::Sparsity(_) => {
            let Threshold::MeanStd(k) = rule.resolved() else { unreachable!("sparsity resolves to mean + k·std") };
            let (mean, std) = compute.mean_std(scores);
            return compute.mask_above(scores, mean + k * std, false, mask);
        }
        Threshold::TopK(k) => k.min(n),
        Threshold::Quantile(q) => (((1.0 - f64::from(q)) * n as f64).round() as usize).min(n),
    };
    match keep {
        0 => mask.fill(0),
        // The k-th largest itself is kept: the comparison is strict, so go one step below it.
        _ => compute.mask_above(scores, compute.kth_largest(scores, keep, spare).next_down(), false, mask),
    }
}
