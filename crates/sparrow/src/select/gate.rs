//! `gate`: the gate is computed exactly, and neurons whose activated gate is zero or small are skipped (CATS, arXiv 2404.08763).
//! Calibrated where it has no exact zeros, what the gate lets through is weighted by what the neuron is expected to bring (CHESS, arXiv
//! 2409.01366), and what is skipped counts with its mean.

use serde::{Deserialize, Serialize};

use super::kind::{Calibrates, Found, Goal, Kind, Loaded, Record, Scores, Unfit, rule};
use super::selector::{Neurons, Selector};
use super::{Method, SelectorSpec};
use crate::backend::{GateNeurons, Scorer, Threshold};
use crate::error::Result;
use crate::spec::ModelSpec;
use crate::weights::LayerWeights;

/// See the file.
pub struct Gate;

/// What calibration found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Calibrated {
    /// Of `|act(gate)|`, one per layer.
    pub thresholds: Vec<Threshold>,
    /// `|act(gate)|` is multiplied with weights of the neurons before it is compared, and what is left out counts with means: both are
    /// beside it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub weighted: bool,
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
        let neurons = model.gate_neurons.filter(|_| spec.rule().is_none() && stored.is_some());
        let thresholds = model.thresholds(spec, stored, "fixed=0.1")?;
        let Some(neurons) = neurons else { return Ok(Selector::gate(thresholds)) };
        let layers = neurons.iter().zip(&model.weights.layers);
        let layer =
            |(values, layer): (&[Vec<f32>; 2], &LayerWeights)| GateNeurons::new(model.cpu, &layer.mlp, values.clone());
        Ok(Selector::Neurons(Neurons::above(Scorer::Gate(Some(layers.map(layer).collect())), thresholds, false)))
    }

    fn calibrates(&self) -> Calibrates {
        Calibrates::Neurons(Scores::Gate)
    }

    fn default_goal(&self, relu: bool) -> Goal {
        if relu { Goal::Recall(1.0) } else { Goal::Active(0.6) }
    }

    fn method(&self, found: Found) -> Method {
        let Found::Neurons { thresholds, weighted, .. } = found else { panic!("gate keeps neurons, found {found:?}") };
        Method::Gate(Calibrated { thresholds, weighted })
    }
}

impl Record for Calibrated {
    fn kind(&self) -> &'static dyn Kind {
        &Gate
    }

    fn neuron_thresholds(&self) -> Option<&[Threshold]> {
        Some(&self.thresholds)
    }

    fn has_gate_neurons(&self) -> bool {
        self.weighted
    }

    fn check(&self, spec: &ModelSpec) -> std::result::Result<(), Unfit> {
        Unfit::unless_thresholds(&self.thresholds, spec)
    }
}

impl Selector {
    /// Keeps neurons with `|act(gate)|` above the layer's threshold.
    pub fn gate(thresholds: Vec<Threshold>) -> Self {
        Selector::Neurons(Neurons::above(Scorer::Gate(None), thresholds, false))
    }
}
