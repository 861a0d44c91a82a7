//! Blocks of layers, as they are named.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Layers whose attention or MLP is left out. As text: `attention=3-5+9`, `mlp=7`, or both with a comma between.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SkippedBlocks {
    /// Layers without attention.
    pub attention: BTreeSet<usize>,
    /// Layers without MLP.
    pub mlp: BTreeSet<usize>,
}

/// More layers than any model has: bounds what a range can ask for.
const MAX_LAYERS: usize = 4096;

impl SkippedBlocks {
    /// How they are written.
    pub const USAGE: &'static str = "attention=3-5+9,mlp=7";

    /// The first layer that a model of `layers` layers does not have.
    pub fn out_of_range(&self, layers: usize) -> Option<usize> {
        self.attention.iter().chain(&self.mlp).copied().find(|&l| l >= layers)
    }
}

impl fmt::Display for SkippedBlocks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let part = |name: &str, layers: &BTreeSet<usize>| {
            let list: Vec<String> = layers.iter().map(usize::to_string).collect();
            (!list.is_empty()).then(|| format!("{name}={}", list.join("+")))
        };
        let parts: Vec<String> = part("attention", &self.attention).into_iter().chain(part("mlp", &self.mlp)).collect();
        f.write_str(&parts.join(","))
    }
}

impl FromStr for SkippedBlocks {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let wrong = || format!("skipped blocks {text:?}: use attention=LAYERS,mlp=LAYERS with layers as 3-5+9");
        let mut blocks = SkippedBlocks::default();
        for part in text.split(',') {
            let (name, layers) = part.split_once('=').ok_or_else(wrong)?;
            let set = match name {
                "attention" => &mut blocks.attention,
                "mlp" => &mut blocks.mlp,
                _ => return Err(wrong()),
            };
            for range in layers.split('+') {
                let (first, last) = range.split_once('-').unwrap_or((range, range));
                let number = |text: &str| text.parse().ok().filter(|&n: &usize| n < MAX_LAYERS).ok_or_else(wrong);
                let (first, last) = (number(first)?, number(last)?);
                if first > last {
                    return Err(wrong());
                }
                set.extend(first..=last);
            }
        }
        Ok(blocks)
    }
}
