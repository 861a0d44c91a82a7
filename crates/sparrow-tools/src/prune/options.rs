//! What to prune, how much, and how that is written.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sparrow::{Error, Result};

use crate::named::named;

/// Which weights matter least.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Method {
    /// The smallest, compared over a whole matrix.
    Magnitude,
    /// The smallest `|w| · ‖x‖₂`, `x` being what the input was over the calibration text; compared within an output's row
    /// (arXiv 2306.11695).
    Wanda,
    /// Those whose loss the other weights of the row make up for best, and are changed to (arXiv 2301.00774).
    SparseGpt,
}

/// How much of each matrix becomes zero.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Target {
    /// A fraction, of [`Target::RANGE`].
    Sparsity(f64),
    /// A number of every few weights.
    Pattern(Pattern),
}

/// `keep` weights stay of every `of` that follow each other along the input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Pattern {
    /// Weights that stay, at least 1.
    pub keep: usize,
    /// Of so many, at most [`Pattern::LONGEST`].
    pub of: usize,
}

/// How the sparsity is spread over layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Allocation {
    /// Every layer gets the same.
    #[default]
    Uniform,
    /// Layers with more outliers among their scores keep more (OWL, arXiv 2310.05175).
    Owl,
    /// Matrices keep more whose errors change more of what the model predicts, which is measured.
    Worth,
}

/// What [`prune`](super::prune) should do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PruneOptions {
    /// Which weights go.
    pub method: Method,
    /// How many.
    pub target: Target,
    /// From which layers.
    pub allocation: Allocation,
    /// Patterns (`*`, `?`, `[...]`) of the names of tensors to prune; none: every matrix of the decoder layers.
    pub include: Vec<String>,
    /// Patterns of those to leave as they are.
    pub exclude: Vec<String>,
    /// Tokens per calibration window.
    pub window: usize,
    /// Windows begin with the beginning-of-sequence token, where the tokenizer adds one.
    pub bos: bool,
    /// Tokens of the text to use, the held-out part included.
    pub max_tokens: usize,
}

impl PruneOptions {
    /// The usual settings.
    pub fn new(method: Method, target: Target) -> Self {
        PruneOptions {
            method,
            target,
            allocation: Allocation::Uniform,
            include: Vec::new(),
            exclude: Vec::new(),
            window: 256,
            bos: true,
            max_tokens: 65_536,
        }
    }

    /// Whether activations are needed to decide.
    pub(super) fn calibrates(&self) -> bool {
        self.method != Method::Magnitude || self.allocation != Allocation::Uniform
    }

    /// # Errors
    /// If the sparsity is out of range, or cannot be allocated that way.
    pub(super) fn check(&self) -> Result<()> {
        match self.target {
            Target::Sparsity(sparsity) if !Target::RANGE.contains(&sparsity) => {
                let (least, most) = (Target::RANGE.start(), Target::RANGE.end());
                Err(Error::option("sparsity", format!("must be from {least} to {most}, found {sparsity}")))
            }
            Target::Pattern(pattern) if self.allocation != Allocation::Uniform => {
                let message = format!(
                    "{} gives layers different sparsities, which {pattern} does not allow: use uniform",
                    self.allocation
                );
                Err(Error::option("allocation", message))
            }
            _ => Ok(()),
        }
    }
}

impl Target {
    /// Sparsities that can be asked for.
    pub const RANGE: std::ops::RangeInclusive<f64> = 0.2..=0.8;

    /// As a fraction.
    pub fn sparsity(self) -> f64 {
        match self {
            Target::Sparsity(sparsity) => sparsity,
            Target::Pattern(Pattern { keep, of }) => 1.0 - keep as f64 / of as f64,
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Sparsity(sparsity) => write!(f, "{} %", (sparsity * 1e4).round() / 1e2),
            Target::Pattern(pattern) => write!(f, "{pattern}"),
        }
    }
}

impl Pattern {
    /// The longest group.
    pub const LONGEST: usize = 256;
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.keep, self.of)
    }
}

impl From<Pattern> for String {
    fn from(pattern: Pattern) -> String {
        pattern.to_string()
    }
}

impl TryFrom<String> for Pattern {
    type Error = String;

    fn try_from(text: String) -> std::result::Result<Self, String> {
        text.parse()
    }
}

impl FromStr for Pattern {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let numbers = text.split_once(':').and_then(|(keep, of)| Some((keep.parse().ok()?, of.parse().ok()?)));
        match numbers {
            Some((keep, of)) if 0 < keep && keep < of && of <= Pattern::LONGEST => Ok(Pattern { keep, of }),
            _ => Err(format!(
                "{text:?} is no pattern: write N:M, as in 2:4, to keep N of every M weights (0 < N < M <= {})",
                Pattern::LONGEST
            )),
        }
    }
}

named!(Method, "method", Magnitude => "magnitude", Wanda => "wanda", SparseGpt => "sparsegpt");
named!(Allocation, "allocation", Uniform => "uniform", Owl => "owl", Worth => "worth");
