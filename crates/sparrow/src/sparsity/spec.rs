//! Selectors as a user names them.

use std::fmt;
use std::str::FromStr;

use super::skip::SkippedBlocks;
use super::threshold::Threshold;

/// A selector as a user names it: `dense`; `gate`, `lowrank`, `sign` or `input`, each with an optional `:RULE` (see
/// [`Threshold`]); `skip[:BLOCKS]` (see [`SkippedBlocks`]). Without rule or blocks what calibration found is used.
#[derive(Debug, Clone, PartialEq)]
pub enum SelectorSpec {
    /// Everything.
    Dense,
    /// Computes the gate exactly and skips neurons whose activated gate is zero or small (CATS, arXiv 2404.08763).
    Gate(Option<Threshold>),
    /// Predicts the gate by two thin matrices and skips neurons predicted small (Deja Vu, arXiv 2310.17157).
    LowRank(Option<Threshold>),
    /// Estimates the gate's sign from sign bits and skips neurons that seem negative (SparseInfer, arXiv 2411.12692).
    Sign(Option<Threshold>),
    /// Skips the small inputs of all seven projections of a block (TEAL, arXiv 2408.14690).
    Input(Option<Threshold>),
    /// Leaves out the attention or MLP of whole layers.
    Skip(Option<SkippedBlocks>),
    /// Random active sets of a given size and step-to-step overlap: for measuring speed only.
    Forced {
        /// Fraction of neurons active.
        active: f32,
        /// Fraction of a step's active neurons that the next step has too.
        overlap: f32,
    },
}

type WithRule = (&'static str, fn(Option<Threshold>) -> SelectorSpec);

/// Selectors that take a threshold rule.
const WITH_RULE: [WithRule; 4] = [
    ("gate", SelectorSpec::Gate),
    ("lowrank", SelectorSpec::LowRank),
    ("sign", SelectorSpec::Sign),
    ("input", SelectorSpec::Input),
];

impl SelectorSpec {
    /// `dense`, `gate`, `lowrank`, `sign`, `input`, `skip` or `forced`.
    pub fn name(&self) -> &'static str {
        match self {
            SelectorSpec::Dense => "dense",
            SelectorSpec::Gate(_) => "gate",
            SelectorSpec::LowRank(_) => "lowrank",
            SelectorSpec::Sign(_) => "sign",
            SelectorSpec::Input(_) => "input",
            SelectorSpec::Skip(_) => "skip",
            SelectorSpec::Forced { .. } => "forced",
        }
    }

    /// The threshold rule it was given, if it takes one and was given one.
    pub fn rule(&self) -> Option<Threshold> {
        match self {
            SelectorSpec::Gate(rule)
            | SelectorSpec::LowRank(rule)
            | SelectorSpec::Sign(rule)
            | SelectorSpec::Input(rule) => *rule,
            _ => None,
        }
    }
}

impl fmt::Display for SelectorSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SelectorSpec::Forced { active, overlap } => write!(f, "forced:active={active},overlap={overlap}"),
            SelectorSpec::Skip(Some(blocks)) => write!(f, "skip:{blocks}"),
            other => match other.rule() {
                None => f.write_str(other.name()),
                Some(rule) => write!(f, "{}:{rule}", other.name()),
            },
        }
    }
}

impl FromStr for SelectorSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, parameters) = match text.split_once(':') {
            Some((name, parameters)) => (name, Some(parameters)),
            None => (text, None),
        };
        if let Some((_, with_rule)) = WITH_RULE.iter().find(|(known, _)| *known == name) {
            return Ok(with_rule(parameters.map(str::parse).transpose()?));
        }
        match (name, parameters) {
            ("dense", None) => Ok(SelectorSpec::Dense),
            ("dense", Some(_)) => Err("selector dense takes no threshold".into()),
            ("skip", blocks) => Ok(SelectorSpec::Skip(blocks.map(str::parse).transpose()?)),
            ("forced", Some(parameters)) => {
                parse_forced(parameters).ok_or_else(|| format!("selector {text:?}: use forced:active=F,overlap=P"))
            }
            _ => Err(format!(
                "unknown selector {name:?}: use dense, gate[:RULE], lowrank[:RULE], sign[:RULE], input[:RULE] or \
                 skip[:BLOCKS]"
            )),
        }
    }
}

fn parse_forced(parameters: &str) -> Option<SelectorSpec> {
    let (active, overlap) = parameters.split_once(',')?;
    let active = active.strip_prefix("active=")?.parse().ok()?;
    Some(SelectorSpec::Forced { active, overlap: overlap.strip_prefix("overlap=")?.parse().ok()? })
}
