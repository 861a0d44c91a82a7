//! `sparrow.json`: what `sparrow sparsify` decided for one model, and the quality it measured.

use serde::{Deserialize, Serialize};

use super::observe::PredictorQuality;
use super::predictor::Predictor;
use super::selector::SelectorSpec;
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
    /// `gate` or `lowrank`.
    pub selector: String,
    /// Rank of the predictors, for `lowrank`.
    pub rank: Option<usize>,
    /// One per layer.
    pub thresholds: Vec<Threshold>,
    /// `|act(gate)|` above which a neuron counts as truly active when recall is measured, one per layer.
    pub true_active_above: Vec<f32>,
    /// What it was calibrated on.
    pub calibration: CalibrationText,
    /// What it cost, measured on text that calibration did not see.
    pub quality: Quality,
}

impl SidecarFile {
    /// The version this library reads and writes.
    pub const VERSION: u32 = 1;
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
    /// Recall and precision of the truly active neurons, per layer.
    pub selection: Vec<PredictorQuality>,
}

/// A sidecar with its tensors, checked against its model.
#[derive(Debug)]
pub struct Sidecar {
    /// The file's content.
    pub file: SidecarFile,
    /// One per layer, for `lowrank`.
    pub predictors: Vec<Predictor>,
}

impl Sidecar {
    /// The selector it was made for.
    pub fn selector_spec(&self) -> SelectorSpec {
        if self.is_gate() { SelectorSpec::Gate(None) } else { SelectorSpec::LowRank(None) }
    }

    /// Whether it carries thresholds of the gate selector; otherwise it carries predictors.
    pub fn is_gate(&self) -> bool {
        self.file.selector == "gate"
    }
}
