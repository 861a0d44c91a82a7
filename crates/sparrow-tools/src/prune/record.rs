//! `sparrow-pruning.json`: what `sparrow prune` did to a model, and the quality it measured.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use sparrow::Result;
use sparrow::internals::record::CalibrationText;

use super::options::{Allocation, Method, Target};
use crate::layerwise::{MeasuredQuality, read_record};

/// The file itself. Versioned and human-readable; it describes the weights beside it, nothing depends on it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PruningRecord {
    /// [`PruningRecord::VERSION`].
    pub format_version: u32,
    /// Which weights went.
    pub method: Method,
    /// How many of a matrix were asked for.
    pub target: Target,
    /// How that was spread over layers.
    pub allocation: Allocation,
    /// Patterns of the names of tensors that were to be pruned; none: every matrix of the decoder layers.
    pub include: Vec<String>,
    /// Patterns of those that were not.
    pub exclude: Vec<String>,
    /// SHA-256 over names, shapes and sampled bytes of the tensors before.
    pub source: String,
    /// What activations were taken from; 0 tokens where none were needed.
    pub calibration: CalibrationText,
    /// Zeros ÷ weights over all pruned tensors.
    pub sparsity: f64,
    /// What became of each layer.
    pub layers: Vec<LayerRecord>,
    /// What it cost, measured on text that calibration did not see; `dense` stands for the model before.
    pub quality: MeasuredQuality,
}

/// One decoder layer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayerRecord {
    /// The sparsity it was allocated, over all its matrices.
    pub target: f64,
    /// Zeros ÷ weights of each pruned tensor.
    pub tensors: BTreeMap<String, f64>,
}

impl PruningRecord {
    /// The version this library reads and writes.
    pub const VERSION: u32 = 1;
    /// Its name in the model directory.
    pub const NAME: &'static str = "sparrow-pruning.json";

    /// The record in `dir`, if there is one.
    ///
    /// # Errors
    /// If it is malformed or of another version; the message names the field.
    pub fn read(dir: &Path) -> Result<Option<Self>> {
        read_record(&dir.join(Self::NAME), Self::VERSION)
    }
}
