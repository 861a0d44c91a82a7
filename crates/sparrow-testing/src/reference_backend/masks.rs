//! Which neurons or inputs count for a token.

use sparrow::internals::backend::Threshold;

/// Which of a row of scores a rule keeps: all that are above a threshold, or the highest so many and what ties with the last of them.
pub fn above(rule: Threshold, scores: &[f64]) -> Vec<bool> {
    let n = scores.len() as f64;
    let than = |threshold: f64| scores.iter().map(|&s| s > threshold).collect();
    let highest = |k: usize| {
        let mut sorted = scores.to_vec();
        sorted.sort_by(|a, b| b.total_cmp(a));
        let last = sorted[..k.min(sorted.len())].last().copied().unwrap_or(f64::INFINITY);
        scores.iter().map(|&s| s >= last).collect()
    };
    if let Some(k) = rule.keep(scores.len()) {
        return highest(k);
    }
    match rule.resolved() {
        Threshold::Fixed(t) => than(f64::from(t)),
        Threshold::MeanStd(k) => {
            let mean = scores.iter().sum::<f64>() / n;
            let std = (scores.iter().map(|s| (s - mean) * (s - mean)).sum::<f64>() / n).sqrt();
            than(mean + f64::from(k) * std)
        }
        rule => unreachable!("{rule} goes by order, or resolves to mean + k·std"),
    }
}

/// Those that are set in any of `masks`.
pub fn union(masks: &[Vec<bool>]) -> Vec<bool> {
    (0..masks[0].len()).map(|i| masks.iter().any(|mask| mask[i])).collect()
}

/// How many are set.
pub fn count(mask: &[bool]) -> u64 {
    mask.iter().filter(|&&set| set).count() as u64
}

/// `x`, and instead of what is not set the `others`.
pub fn kept(x: &[f64], mask: &[bool], others: impl Fn(usize) -> f64) -> Vec<f64> {
    x.iter().zip(mask).enumerate().map(|(i, (&x, &set))| if set { x } else { others(i) }).collect()
}
