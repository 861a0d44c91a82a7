//! From scores to a mask: which of a layer's neurons are active for one token.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sparrow_kernels::Compute;

/// A rule that turns one row of scores into a threshold; neurons with scores above it are active.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Threshold {
    /// The same value for every token.
    Fixed(f32),
    /// `mean + k·std` of the token's scores.
    MeanStd(f32),
    /// The token's `n` highest scores (more where scores tie).
    TopK(usize),
    /// The token's highest scores from this quantile up: 0.9 keeps a tenth.
    Quantile(f32),
}

impl Threshold {
    /// Writes the mask of `scores` (or of their magnitudes) under this rule; `spare` is working memory.
    pub(crate) fn mask(
        self,
        compute: &Compute,
        scores: &mut [f32],
        magnitude: bool,
        spare: &mut Vec<f32>,
        mask: &mut [u64],
    ) {
        if magnitude && !matches!(self, Threshold::Fixed(_)) {
            scores.iter_mut().for_each(|s| *s = s.abs());
        }
        let n = scores.len();
        let keep = match self {
            Threshold::Fixed(t) => return compute.mask_above(scores, t, magnitude, mask),
            Threshold::MeanStd(k) => {
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
}

impl fmt::Display for Threshold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Threshold::Fixed(t) => write!(f, "fixed={t}"),
            Threshold::MeanStd(k) => write!(f, "mean-std={k}"),
            Threshold::TopK(n) => write!(f, "top-k={n}"),
            Threshold::Quantile(q) => write!(f, "quantile={q}"),
        }
    }
}

impl FromStr for Threshold {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const RULES: &str = "use fixed=T, mean-std=K, top-k=N or quantile=Q";
        let (rule, value) = text.split_once('=').ok_or_else(|| format!("threshold {text:?} has no value: {RULES}"))?;
        let number = || match value.parse::<f32>() {
            Ok(v) if v.is_finite() => Ok(v),
            _ => Err(format!("threshold {text:?}: {value:?} is not a finite number")),
        };
        match rule {
            "fixed" => Ok(Threshold::Fixed(number()?)),
            "mean-std" => Ok(Threshold::MeanStd(number()?)),
            "top-k" => match value.parse() {
                Ok(n) if n > 0 => Ok(Threshold::TopK(n)),
                _ => Err(format!("threshold {text:?}: {value:?} is not a whole number above 0")),
            },
            "quantile" => match number()? {
                q if (0.0..1.0).contains(&q) => Ok(Threshold::Quantile(q)),
                _ => Err(format!("threshold {text:?}: a quantile is at least 0 and below 1")),
            },
            _ => Err(format!("unknown threshold rule {rule:?}: {RULES}")),
        }
    }
}
