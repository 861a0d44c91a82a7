//! Rules that say which of a layer's neurons, or inputs, are active for one token.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A rule that turns one row of scores into a threshold; neurons with scores above it are active.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Threshold {
    /// The same value for every token.
    Fixed(f32),
    /// `mean + k·std` of the token's scores.
    MeanStd(f32),
    /// `mean + k·std` with the `k` that leaves this fraction of normally distributed scores below: 0.9 keeps about a tenth.
    Sparsity(f32),
    /// The token's `n` highest scores (more where scores tie).
    TopK(usize),
    /// The token's highest scores from this quantile up: 0.9 keeps a tenth.
    Quantile(f32),
}

impl Threshold {
    /// How rules are written.
    pub const USAGE: &'static str = "fixed=T, mean-std=K, sparsity=S, top-k=N or quantile=Q";

    /// How many of `n` scores a rule keeps that goes by their order: more only where scores tie with the last of them.
    pub fn keep(self, n: usize) -> Option<usize> {
        match self {
            Threshold::TopK(k) => Some(k.min(n)),
            Threshold::Quantile(q) => Some((((1.0 - f64::from(q)) * n as f64).round() as usize).min(n)),
            Threshold::Fixed(_) | Threshold::MeanStd(_) | Threshold::Sparsity(_) => None,
        }
    }

    /// The same rule, with the factor of a sparsity computed once and for all.
    pub fn resolved(self) -> Self {
        match self {
            Threshold::Sparsity(s) => Threshold::MeanStd(normal_quantile(f64::from(s)) as f32),
            other => other,
        }
    }
}

/// The value that a fraction `p`, above 0 and below 1, of a standard normal distribution lies below: bisection of its
/// distribution function, ½·erfc(−z/√2).
fn normal_quantile(p: f64) -> f64 {
    let (mut low, mut high) = (-9.0, 9.0);
    for _ in 0..60 {
        let middle = (low + high) / 2.0;
        if 0.5 * libm::erfc(-middle / std::f64::consts::SQRT_2) < p { low = middle } else { high = middle }
    }
    low
}

impl fmt::Display for Threshold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Threshold::Fixed(t) => write!(f, "fixed={t}"),
            Threshold::MeanStd(k) => write!(f, "mean-std={k}"),
            Threshold::Sparsity(s) => write!(f, "sparsity={s}"),
            Threshold::TopK(n) => write!(f, "top-k={n}"),
            Threshold::Quantile(q) => write!(f, "quantile={q}"),
        }
    }
}

impl FromStr for Threshold {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let usage = Threshold::USAGE;
        let (rule, value) =
            text.split_once('=').ok_or_else(|| format!("threshold {text:?} has no value: use {usage}"))?;
        let number = || match value.parse::<f32>() {
            Ok(v) if v.is_finite() => Ok(v),
            _ => Err(format!("threshold {text:?}: {value:?} is not a finite number")),
        };
        match rule {
            "fixed" => Ok(Threshold::Fixed(number()?)),
            "mean-std" => Ok(Threshold::MeanStd(number()?)),
            "sparsity" => match number()? {
                s if s > 0.0 && s < 1.0 => Ok(Threshold::Sparsity(s)),
                _ => Err(format!("threshold {text:?}: a sparsity is above 0 and below 1")),
            },
            "top-k" => match value.parse() {
                Ok(n) if n > 0 => Ok(Threshold::TopK(n)),
                _ => Err(format!("threshold {text:?}: {value:?} is not a whole number above 0")),
            },
            "quantile" => match number()? {
                q if (0.0..1.0).contains(&q) => Ok(Threshold::Quantile(q)),
                _ => Err(format!("threshold {text:?}: a quantile is at least 0 and below 1")),
            },
            _ => Err(format!("unknown threshold rule {rule:?}: use {usage}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn normal_quantiles_are_the_published_ones() {
        for (p, z) in [(0.5, 0.0), (0.9, 1.281_552), (0.975, 1.959_964), (0.01, -2.326_348), (1e-6, -4.753_424)] {
            assert!((normal_quantile(p) - z).abs() < 2e-6, "{p}: {}", normal_quantile(p));
        }
    }
}
