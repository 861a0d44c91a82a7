//! `sparrow.json`: what `sparrow sparsify` decided for one model, and the quality it measured.

use serde::{Deserialize, Serialize};

use super::observe::PredictorQuality;
use super::predictor::Predictor;
use super::skip::SkippedBlocks;
use super::spec::SelectorSpec;
use super::threshold::Threshold;
use crate::eval::Evaluation;

/// The file itself. Versioned and human-readable.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SidecarFile {
    /// [`SidecarFile::VERSION`].
    pub format_version: u32,
    /// SHA-256 over names, shapes and sampled bytes of the tensors beside it: the file is refused for any other model.
    pub fingerprint: String,
    /// The selector and what calibration found for it.
    pub method: Method,
    /// `|act(gate)|` above which a neuron counts as truly active when recall is measured, one per layer; empty for selectors
    /// that do not select neurons.
    pub true_active_above: Vec<f32>,
    /// What it was calibrated on.
    pub calibration: CalibrationText,
    /// What it cost, measured on text that calibration did not see.
    pub quality: Quality,
    /// The settings that were tried for a wanted quality, in order.
    pub search: Vec<Trial>,
}

/// A selector with its calibrated values.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum Method {
    /// [`SelectorSpec::Gate`].
    Gate {
        /// One per layer.
        thresholds: Vec<Threshold>,
    },
    /// [`SelectorSpec::LowRank`].
    LowRank {
        /// Of the predictors.
        rank: usize,
        /// Predictors read the attention's input instead of the MLP's.
        look_ahead: bool,
        /// Passes of training over the calibration text; 0 for the closed form.
        epochs: usize,
        /// One per layer.
        thresholds: Vec<Threshold>,
    },
    /// [`SelectorSpec::Sign`].
    Sign {
        /// One per layer.
        thresholds: Vec<Threshold>,
    },
    /// [`SelectorSpec::Input`].
    Input {
        /// Magnitudes, per layer and projection: q, k, v, o, gate, up, down.
        thresholds: Vec<[f32; 7]>,
    },
    /// [`SelectorSpec::Skip`].
    Skip(SkippedBlocks),
}

impl Method {
    /// The selector it is for.
    pub fn selector(&self) -> SelectorSpec {
        match self {
            Method::Gate { .. } => SelectorSpec::Gate(None),
            Method::LowRank { .. } => SelectorSpec::LowRank(None),
            Method::Sign { .. } => SelectorSpec::Sign(None),
            Method::Input { .. } => SelectorSpec::Input(None),
            Method::Skip(_) => SelectorSpec::Skip(None),
        }
    }

    /// Thresholds of neurons, one per layer; none for selectors of inputs or blocks.
    pub fn neuron_thresholds(&self) -> Option<&[Threshold]> {
        match self {
            Method::Gate { thresholds } | Method::LowRank { thresholds, .. } | Method::Sign { thresholds } => {
                Some(thresholds)
            }
            Method::Input { .. } | Method::Skip(_) => None,
        }
    }
}

/// One setting tried in a search for a wanted quality.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Trial {
    /// What calibration was asked for: the active fraction.
    pub target_active: f64,
    /// What was measured.
    pub active_fraction: f64,
    /// On the part of the text that the search reads.
    pub perplexity: f64,
    /// The same, dense.
    pub dense_perplexity: f64,
    /// Mean KL divergence from dense, in nats.
    pub kl_mean: f64,
    /// Whether it was good enough.
    pub accepted: bool,
}

impl SidecarFile {
    /// The version this library reads and writes.
    pub const VERSION: u32 = 2;
    /// Its name in the model directory.
    pub const NAME: &'static str = "sparrow.json";
    /// The file of predictor tensors beside it.
    pub const TENSORS: &'static str = "sparrow.safetensors";
}

/// The text that thresholds and predictors were made from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CalibrationText {
    /// File name.
    pub file: String,
    /// SHA-256 of the file.
    pub sha256: String,
    /// Tokens used.
    pub tokens: usize,
}

/// Measured cost of the selector.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Quality {
    /// Which text.
    pub text: String,
    /// Perplexity, KL divergence, agreement, active fraction.
    #[serde(flatten)]
    pub evaluation: Evaluation,
    /// Recall and precision of the truly active neurons, per layer; empty for selectors that do not select neurons.
    pub selection: Vec<PredictorQuality>,
    /// Neurons active for a token that were active for the token before it ÷ active, per layer; empty likewise.
    pub overlap: Vec<f64>,
}

/// A sidecar with its tensors, checked against its model.
#[derive(Debug)]
pub struct Sidecar {
    /// The file's content.
    pub file: SidecarFile,
    /// One per layer, for `lowrank`.
    pub predictors: Vec<Predictor>,
}
