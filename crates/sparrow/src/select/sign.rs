//! `sign`: the gate's sign is estimated from sign bits, and neurons that seem negative are skipped: no training, a sixteenth of a
//! bf16 gate's bytes (SparseInfer, arXiv 2411.12692).

use serde::{Deserialize, Serialize};

use super::kind::{Calibrates, Found, Goal, Kind, Loaded, Record, Scores, Unfit, rule};
use super::selector::{Neurons, Selector};
use super::{Method, SelectorSpec};
use crate::backend::{Scorer, SignBits, Threshold};
use crate::error::Result;
use crate::spec::ModelSpec;

/// See the file.
pub struct Sign;

/// What calibration found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Calibrated {
    /// Of the share of positive products less that of negative ones, one per layer.
    pub thresholds: Vec<Threshold>,
}

impl Kind for Sign {
    fn name(&self) -> &'static str {
        "sign"
    }

    fn usage(&self) -> &'static str {
        "sign[:RULE]"
    }

    fn help(&self) -> &'static str {
        "neurons whose gate has mostly negative products, by sign bits, are skipped"
    }

    fn parse(&self, parameters: Option<&str>) -> std::result::Result<Option<String>, String> {
        rule(parameters)
    }

    fn ready(&self, spec: &SelectorSpec, model: &Loaded) -> Result<Selector> {
        let stored = match model.calibrated {
            Some(Method::Sign(calibrated)) => Some(calibrated.thresholds.as_slice()),
            _ => None,
        };
        let thresholds = model.thresholds(spec, stored, "quantile=0.5")?;
        let signs = model.weights.layers.iter().map(|layer| model.cpu.sign_bits(&layer.mlp.deciding().weight));
        Ok(Selector::sign(signs.collect(), thresholds))
    }

    fn calibrates(&self) -> Calibrates {
        Calibrates::Neurons(Scores::Signs)
    }

    fn default_goal(&self, relu: bool) -> Goal {
        if relu { Goal::Recall(0.99) } else { Goal::Active(0.6) }
    }

    fn method(&self, found: Found) -> Method {
        let Found::Neurons { thresholds, .. } = found else { panic!("sign keeps neurons, found {found:?}") };
        Method::Sign(Calibrated { thresholds })
    }
}

impl Record for Calibrated {
    fn kind(&self) -> &'static dyn Kind {
        &Sign
    }

    fn neuron_thresholds(&self) -> Option<&[Threshold]> {
        Some(&self.thresholds)
    }

    fn check(&self, spec: &ModelSpec) -> std::result::Result<(), Unfit> {
        Unfit::unless_thresholds(&self.thresholds, spec)
    }
}

impl Selector {
    /// Keeps neurons whose share of positive products less that of negative ones is above the layer's threshold.
    ///
    /// # Panics
    /// If there is not one threshold per layer.
    pub fn sign(signs: Vec<SignBits>, thresholds: Vec<Threshold>) -> Self {
        assert_eq!(signs.len(), thresholds.len(), "one threshold per layer");
        Selector::Neurons(Neurons::above(Scorer::Signs(signs.into()), thresholds, false))
    }
}
