//! `sparrow-quantization.json`: what `sparrow quantize` did to a model, and the quality it measured.

use std::path::Path;

use serde::{Deserialize, Serialize};
use sparrow::Result;
use sparrow::internals::record::CalibrationText;

use super::options::{Along, Method};
use crate::layerwise::{MeasuredQuality, read_record};

/// The file itself. Versioned and human-readable; it describes the weights beside it, nothing depends on it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct QuantizationRecord {
    /// [`QuantizationRecord::VERSION`].
    pub format_version: u32,
    /// How weights were rounded.
    pub method: Method,
    /// Bits of a code.
    pub bits: u32,
    /// Bits of a weight that were asked for on average, scales included; none: all have `bits`.
    #[serde(default)]
    pub average_bits: Option<f64>,
    /// Weights that share a scale; none: a row.
    pub group: Option<usize>,
    /// Where these weights lie.
    #[serde(default)]
    pub along: Along,
    /// Whether groups have a zero point.
    pub zero_points: bool,
    /// Patterns of the names of tensors that were to be quantised; none: every matrix of the decoder layers.
    pub include: Vec<String>,
    /// Patterns of those that were not.
    pub exclude: Vec<String>,
    /// SHA-256 over names, shapes and sampled bytes of the tensors before.
    pub source: String,
    /// What activations were taken from; 0 tokens where none were needed.
    pub calibration: CalibrationText,
    /// Matrices that were quantised.
    pub matrices: usize,
    /// How many of them got 8 bits.
    #[serde(default)]
    pub matrices_of_8_bits: usize,
    /// Their bits, scales and zero points included, ÷ their weights.
    pub bits_per_weight: f64,
    /// Bits of all tensors ÷ weights of the model: embedding, head and norms included.
    pub bits_per_weight_of_model: f64,
    /// What it cost, measured on text that calibration did not see; `dense` stands for the model before.
    pub quality: MeasuredQuality,
}

impl QuantizationRecord {
    /// The version this library reads and writes.
    pub const VERSION: u32 = 1;
    /// Its name in the model directory.
    pub const NAME: &'static str = "sparrow-quantization.json";

    /// The record in `dir`, if there is one.
    ///
    /// # Errors
    /// If it is malformed or of another version; the message names the field.
    pub fn read(dir: &Path) -> Result<Option<Self>> {
        read_record(&dir.join(Self::NAME), Self::VERSION)
    }
}
