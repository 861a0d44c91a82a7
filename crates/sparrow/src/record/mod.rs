//! `sparrow.json`: what `sparrow sparsify` decided for one model, and the quality it measured.

mod quality;
mod read;

use std::sync::Arc;

use serde::{Deserialize, Serialize};

pub use quality::{Evaluation, PredictorQuality};
pub use read::read_sidecar;

use crate::backend::{InputNorms, Predictor};
use crate::select::Method;

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
    /// Whether each window, of the text that the quality was measured on too, began with a beginning-of-sequence token.
    #[serde(default)]
    pub bos: bool,
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
    /// One per layer, for `input`.
    pub norms: Option<Arc<[InputNorms]>>,
}
