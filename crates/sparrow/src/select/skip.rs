//! `skip`: whole blocks are left out, so that the residual stream passes them unchanged.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::kind::{Calibrates, Found, Goal, Kind, Loaded, Record, Unfit, needs};
use super::selector::Selector;
use super::{Method, SelectorSpec};
use crate::error::{Error, Result};
use crate::spec::ModelSpec;

/// See the file.
pub struct Skip;

/// What calibration found.
pub type Calibrated = SkippedBlocks;

impl Kind for Skip {
    fn name(&self) -> &'static str {
        "skip"
    }

    fn usage(&self) -> &'static str {
        "skip[:BLOCKS]"
    }

    fn help(&self) -> &'static str {
        "attention or MLP of whole layers is left out"
    }

    fn parse(&self, parameters: Option<&str>) -> std::result::Result<Option<String>, String> {
        Ok(parameters.map(str::parse::<SkippedBlocks>).transpose()?.map(|blocks| blocks.to_string()))
    }

    fn ready(&self, spec: &SelectorSpec, model: &Loaded) -> Result<Selector> {
        let given = spec.parameters().map(|blocks| blocks.parse().expect("checked when it was parsed"));
        let stored = match model.calibrated {
            Some(Method::Skip(blocks)) => Some(blocks.clone()),
            _ => None,
        };
        let none = || needs(spec, "calibrated blocks or a list of them (skip:attention=3,mlp=3-5)");
        let blocks: SkippedBlocks = given.or(stored).ok_or_else(none)?;
        let layers = model.spec.num_layers;
        if let Some(layer) = blocks.out_of_range(layers) {
            let message = format!("skip names layer {layer}, but the model has layers 0 to {}", layers - 1);
            return Err(Error::option("selector", message));
        }
        Ok(Selector::skip(blocks))
    }

    fn calibrates(&self) -> Calibrates {
        Calibrates::Blocks
    }

    fn default_goal(&self, _: bool) -> Goal {
        Goal::Active(0.9)
    }

    fn method(&self, found: Found) -> Method {
        let Found::Blocks(blocks) = found else { panic!("skip leaves out blocks, found {found:?}") };
        Method::Skip(blocks)
    }
}

impl Record for SkippedBlocks {
    fn kind(&self) -> &'static dyn Kind {
        &Skip
    }

    fn check(&self, spec: &ModelSpec) -> std::result::Result<(), Unfit> {
        match self.out_of_range(spec.num_layers) {
            None => Ok(()),
            Some(layer) => {
                let message = format!("names layer {layer} of a model of {} layers", spec.num_layers);
                Err(Unfit { field: "method.skip", message })
            }
        }
    }
}

impl Selector {
    /// Leaves out whole blocks.
    pub fn skip(blocks: SkippedBlocks) -> Self {
        Selector::Blocks(blocks)
    }
}

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
