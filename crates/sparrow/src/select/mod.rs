//! Selectors: which parts of a model a token needs. One file each; a new one is a file and a line of the list below.

mod blocks;
mod dense;
mod forced;
mod gate;
mod input;
mod kind;
mod low_rank;
mod selector;
mod sign;
mod skip;

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

pub use blocks::SkippedBlocks;
pub use kind::{
    Calibrates, Found, Goal, Kind, Loaded, Record, Scores, Unfit, gate_neuron_tensors, norm_tensors, predictor_tensors,
};
pub use selector::{InputThresholds, Neurons, Selector};

use crate::backend::Threshold;

/// The list of selectors: a file's name, its [`Kind`], and, where calibration finds something for it, the name of its
/// [`Record`] in `sparrow.json`.
macro_rules! selectors {
    ($($file:ident::$kind:ident $(records $name:literal)?),* $(,)?) => {
        /// Every selector, in the order of help texts.
        pub static SELECTORS: &[&dyn Kind] = &[$(&$file::$kind),*];

        /// A selector with its calibrated values, as `sparrow.json` holds it.
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
        pub enum Method {
            $($(
                #[doc = concat!("Of `", $name, "`.")]
                #[serde(rename = $name)]
                $kind($file::Calibrated),
            )?)*
        }

        impl Method {
            /// What all selectors' records have in common.
            pub fn record(&self) -> &dyn Record {
                match self {
                    $($(Method::$kind(record) => { let _ = $name; record })?)*
                }
            }
        }
    };
}

selectors! {
    dense::Dense,
    gate::Gate records "gate",
    low_rank::LowRank records "lowrank",
    sign::Sign records "sign",
    input::Input records "input",
    skip::Skip records "skip",
    forced::Forced,
}

/// A selector as a user names it: a name of [`SELECTORS`], and perhaps a rule or a list of blocks after a colon. Without, what
/// calibration found is used.
#[derive(Clone)]
pub struct SelectorSpec {
    kind: &'static dyn Kind,
    parameters: Option<String>,
}

impl SelectorSpec {
    /// The dense model.
    pub fn dense() -> Self {
        Self::calibrated(&dense::Dense)
    }

    /// A selector with what calibration found for it.
    pub fn calibrated(kind: &'static dyn Kind) -> Self {
        SelectorSpec { kind, parameters: None }
    }

    /// Random active sets of a given size and step-to-step overlap: for measuring speed only.
    pub fn forced(active: f32, overlap: f32) -> Self {
        SelectorSpec { kind: &forced::Forced, parameters: Some(forced::parameters(active, overlap)) }
    }

    /// The active fraction and the overlap of random active sets; none of a selector that decides.
    pub fn forced_sizes(&self) -> Option<(f32, f32)> {
        if self.name() == forced::Forced.name() { forced::sizes(self.parameters()?) } else { None }
    }

    /// Which selector.
    pub fn kind(&self) -> &'static dyn Kind {
        self.kind
    }

    /// What comes after the colon.
    pub fn parameters(&self) -> Option<&str> {
        self.parameters.as_deref()
    }

    /// Its name, as in `gate`.
    pub fn name(&self) -> &'static str {
        self.kind.name()
    }

    /// Whether this is the dense model.
    pub fn is_dense(&self) -> bool {
        *self == Self::dense()
    }

    /// The threshold rule it was given, if it takes one and was given one.
    pub fn rule(&self) -> Option<Threshold> {
        self.parameters.as_deref()?.parse().ok()
    }

    /// The selectors with what may follow their names, in a sentence.
    pub fn names() -> String {
        let names: Vec<&str> = shown().map(|kind| kind.usage()).collect();
        listed(&names)
    }

    /// How selectors are named on a command line.
    pub fn usage() -> String {
        format!("{}; RULE is {}, BLOCKS is {}", Self::names(), Threshold::USAGE, SkippedBlocks::USAGE)
    }

    /// A line about each selector.
    pub fn help() -> String {
        let lines: Vec<String> = shown().map(|kind| format!("  {:<16} {}", kind.usage(), kind.help())).collect();
        lines.join("\n")
    }
}

/// Selectors that help texts name.
fn shown() -> impl Iterator<Item = &'static dyn Kind> {
    SELECTORS.iter().copied().filter(|kind| !kind.is_hidden())
}

/// `a, b or c`.
fn listed(names: &[&str]) -> String {
    let (last, others) = names.split_last().expect("there are selectors");
    format!("{} or {last}", others.join(", "))
}

impl PartialEq for SelectorSpec {
    fn eq(&self, other: &Self) -> bool {
        (self.name(), &self.parameters) == (other.name(), &other.parameters)
    }
}

impl fmt::Debug for SelectorSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SelectorSpec({self})")
    }
}

impl fmt::Display for SelectorSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.parameters {
            None => f.write_str(self.name()),
            Some(parameters) => write!(f, "{}:{parameters}", self.name()),
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
        let Some(kind) = SELECTORS.iter().copied().find(|kind| kind.name() == name) else {
            return Err(format!("unknown selector {name:?}: use {}", Self::names()));
        };
        Ok(SelectorSpec { kind, parameters: kind.parse(parameters)? })
    }
}
