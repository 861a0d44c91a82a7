//! `gate`: the gate is computed exactly, and neurons whose activated gate is zero or small are skipped (CATS, arXiv 2404.08763).

use serde::{Deserialize, Serialize};

use super::kind::{Calibrates, Found, Goal, Kind, Loaded, Record, Scores, Unfit, rule};
use super::selector::{Neurons, Selector};
use super::{Method, SelectorSpec};
use crate::backend::{Scorer, Threshold};
use crate::error::Result;
use crate::spec::ModelSpec;

/// See the file.
pub struct Gate;

/// What calibration found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Calibrated {
    /// Of `|act(gate)|`, one per layer.
    pub thresholds: Vec<Threshold>,
}

impl Kind for Gate {
    fn name(&self) -> &'static str {
        "gate"
    }

    fn usage(&self) -> &'static str {
        "gate[:RULE]"
    }

    fn help(&self) -> &'static str {
        "neurons whose gate, computed exactly, is closed are skipped"
    }

    fn parse(&self, parameters: Option<&str>) -> std::result::Result<Option<String>, String> {
        rule(parameters)
    }

    fn ready(&self, spec: &SelectorSpec, model: &Loaded) -> Result<Selector> {
        let stored = match model.calibrated {
            Some(Method::Gate(calibrated)) => Some(calibrated.thresholds.as_slice()),
            _ => None,
        };
        Ok(Selector::gate(model.thresholds(spec, stored, "fixed=0.1")?))
    }

    fn calibrates(&self) -> Calibrates {
        Calibrates::Neurons(Scores::Gate)
    }

    fn default_goal(&self, relu: bool) -> Goal {
        if relu { Goal::Recall(1.0) } else { Goal::Active(0.6) }
    }

    fn method(&self, found: Found) -> Method {
        let Found::Neurons { thresholds, .. } = found else { panic!("gate keeps neurons, found {found:?}") };
        Method::Gate(Calibrated { thresholds })
    }
}

impl Record for Calibrated {
    fn kind(&self) -> &'static dyn Kind {
        &Gate
    }

    fn neuron_thresholds(&self) -> Option<&[Threshold]> {
        Some(&self.thresholds)
    }

    fn check(&self, spec: &ModelSpec) -> std::result::Result<(), Unfit> {
        Unfit::unless_thresholds(&self.thresholds, spec)
    }
}

impl Selector {
    /// Keeps neurons with `|act(gate)|` above the layer's threshold.
    pub fn gate(thresholds: Vec<Threshold>) -> Self {
        Selector::Neurons(Neurons::above(Scorer::Gate, thresholds, false))
    }
}
