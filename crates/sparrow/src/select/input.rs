//! `input`: the small inputs of all seven projections of a layer are left out, and with them rows of their weights (TEAL,
//! arXiv 2408.14690). Calibrated, their magnitudes are weighted by the norms of the weights that they reach (WINA, arXiv 2505.19427).

use serde::{Deserialize, Serialize};

use super::kind::{Calibrates, Found, Kind, Loaded, Record, Unfit, needs_or_rule, rule};
use super::selector::{InputThresholds, Selector};
use super::{Method, SelectorSpec};
use crate::backend::Threshold;
use crate::error::{Error, Result};
use crate::residency::Placement;
use crate::spec::ModelSpec;

/// See the file.
pub struct Input;

/// What calibration found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Calibrated {
    /// Magnitudes, per layer and projection: q, k, v, o, gate, up, down.
    pub thresholds: Vec<[f32; 7]>,
    /// Magnitudes are multiplied with the norms of the weights' columns, which are beside it, before they are compared.
    #[serde(default)]
    pub weighted: bool,
}

impl Kind for Input {
    fn name(&self) -> &'static str {
        "input"
    }

    fn usage(&self) -> &'static str {
        "input[:RULE]"
    }

    fn help(&self) -> &'static str {
        "small inputs of all projections are left out"
    }

    fn parse(&self, parameters: Option<&str>) -> std::result::Result<Option<String>, String> {
        rule(parameters)
    }

    fn ready(&self, spec: &SelectorSpec, model: &Loaded) -> Result<Selector> {
        if let Placement::Cache(_) = model.placement {
            let message =
                format!("input selects inputs of all projections, not neurons: it cannot run from {}", model.placement);
            return Err(Error::option("selector", message));
        }
        let thresholds = match (spec.rule(), model.calibrated) {
            (Some(rule), _) => InputThresholds { rules: vec![[rule; 7]; model.spec.num_layers], norms: None },
            (None, Some(Method::Input(calibrated))) => InputThresholds {
                rules: calibrated.thresholds.iter().map(|layer| layer.map(Threshold::Fixed)).collect(),
                norms: model.norms.cloned(),
            },
            _ => return Err(needs_or_rule(spec, "calibrated thresholds", "quantile=0.4")),
        };
        Ok(Selector::input(thresholds))
    }

    fn calibrates(&self) -> Calibrates {
        Calibrates::Inputs
    }

    fn method(&self, found: Found) -> Method {
        let Found::Inputs(thresholds) = found else { panic!("input keeps inputs, found {found:?}") };
        Method::Input(Calibrated { thresholds, weighted: true })
    }
}

impl Record for Calibrated {
    fn kind(&self) -> &'static dyn Kind {
        &Input
    }

    fn has_norms(&self) -> bool {
        self.weighted
    }

    fn check(&self, spec: &ModelSpec) -> std::result::Result<(), Unfit> {
        let field = "method.thresholds";
        Unfit::unless_per_layer(field, self.thresholds.len(), spec)?;
        let wrong = |thresholds: &[f32; 7]| !thresholds.iter().all(|t| t.is_finite() && *t >= 0.0);
        match self.thresholds.iter().position(wrong) {
            None => Ok(()),
            Some(layer) => {
                let found = self.thresholds[layer];
                let message = format!("entry {layer} must be finite numbers, 0 or above, found {found:?}");
                Err(Unfit { field, message })
            }
        }
    }
}

impl Selector {
    /// Leaves out inputs of every projection whose magnitude is not above its threshold.
    pub fn input(thresholds: InputThresholds) -> Self {
        let InputThresholds { rules, norms } = thresholds;
        let rules = rules.into_iter().map(|layer| layer.map(Threshold::resolved)).collect();
        Selector::Inputs(InputThresholds { rules, norms })
    }
}
