//! `lowrank`: the gate is predicted by two thin matrices, and neurons predicted small are skipped (Deja Vu, arXiv 2310.17157).

use serde::{Deserialize, Serialize};

use super::kind::{Calibrates, Found, Goal, Kind, Loaded, Record, Scores, Unfit, needs, rule};
use super::selector::{Neurons, Selector};
use super::{Method, SelectorSpec};
use crate::backend::{Predictor, Scorer, Threshold};
use crate::error::Result;
use crate::spec::ModelSpec;

/// See the file.
pub struct LowRank;

/// What calibration found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Calibrated {
    /// Of the predictors.
    pub rank: usize,
    /// Predictors read the attention's input instead of the MLP's.
    pub look_ahead: bool,
    /// Passes of training over the calibration text; 0 for the closed form.
    pub epochs: usize,
    /// Of the predicted gate, one per layer.
    pub thresholds: Vec<Threshold>,
}

impl Kind for LowRank {
    fn name(&self) -> &'static str {
        "lowrank"
    }

    fn usage(&self) -> &'static str {
        "lowrank[:RULE]"
    }

    fn help(&self) -> &'static str {
        "neurons that two thin matrices predict closed are skipped"
    }

    fn parse(&self, parameters: Option<&str>) -> std::result::Result<Option<String>, String> {
        rule(parameters)
    }

    fn ready(&self, spec: &SelectorSpec, model: &Loaded) -> Result<Selector> {
        let Some(Method::LowRank(calibrated)) = model.calibrated else { return Err(needs(spec, "predictors")) };
        let rule = spec.rule().map(|rule| vec![rule; model.spec.num_layers]);
        let thresholds = rule.unwrap_or(calibrated.thresholds.clone());
        Ok(Selector::low_rank(model.predictors.to_vec(), calibrated.look_ahead, thresholds))
    }

    fn calibrates(&self) -> Calibrates {
        Calibrates::Neurons(Scores::LowRank)
    }

    fn default_goal(&self, relu: bool) -> Goal {
        if relu { Goal::Recall(0.99) } else { Goal::Active(0.6) }
    }

    fn method(&self, found: Found) -> Method {
        let Found::Neurons { thresholds, rank, look_ahead, epochs, .. } = found else {
            panic!("lowrank keeps neurons, found {found:?}")
        };
        Method::LowRank(Calibrated { rank, look_ahead, epochs, thresholds })
    }
}

impl Record for Calibrated {
    fn kind(&self) -> &'static dyn Kind {
        &LowRank
    }

    fn neuron_thresholds(&self) -> Option<&[Threshold]> {
        Some(&self.thresholds)
    }

    fn check(&self, spec: &ModelSpec) -> std::result::Result<(), Unfit> {
        Unfit::unless_thresholds(&self.thresholds, spec)?;
        if (1..=spec.hidden_size).contains(&self.rank) {
            return Ok(());
        }
        let message = format!("must be in 1..={}, found {}", spec.hidden_size, self.rank);
        Err(Unfit { field: "method.lowrank.rank", message })
    }

    fn describe(&self) -> String {
        let from = if self.look_ahead { ", looking one block ahead" } else { "" };
        let trained = if self.epochs > 0 { format!(", trained for {} epochs", self.epochs) } else { String::new() };
        format!("lowrank of rank {}{from}{trained}", self.rank)
    }

    fn predictors(&self) -> Option<(usize, bool)> {
        Some((self.rank, self.epochs > 0))
    }
}

impl Selector {
    /// Keeps neurons whose predicted gate is above the layer's threshold. With `look_ahead` the predictors read the
    /// attention's input of the same layer, so that the selection is known before attention is computed.
    ///
    /// # Panics
    /// If there is not one threshold per predictor.
    pub fn low_rank(predictors: Vec<Predictor>, look_ahead: bool, thresholds: Vec<Threshold>) -> Self {
        assert_eq!(predictors.len(), thresholds.len(), "one threshold per layer");
        Selector::Neurons(Neurons::above(Scorer::LowRank(predictors.into()), thresholds, look_ahead))
    }
}
