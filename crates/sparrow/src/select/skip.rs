//! `skip`: whole blocks are left out, so that the residual stream passes them unchanged.

use super::blocks::SkippedBlocks;
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

    fn describe(&self) -> String {
        format!("skip without {self}")
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
