//! `sparrow.json`: what `sparrow sparsify` or `sparrow tune` decided for one model, and the quality it measured.

mod quality;
mod read;

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use sparrow_kernels::DType;

pub use quality::{Evaluation, PredictorQuality};
pub use read::read_sidecar;

use crate::backend::{InputNorms, Predictor};
use crate::select::{Method, Record};

/// The file itself. Versioned and human-readable.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SidecarFile {
    /// [`SidecarFile::VERSION`].
    pub format_version: u32,
    /// SHA-256 over names, shapes and sampled bytes of the tensors beside it: the file is refused for any other model.
    pub fingerprint: String,
    /// The selector and what calibration found for it; none: everything is computed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub method: Option<Method>,
    /// What weights are quantised to while they are loaded, unless something else is asked for.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "dtype_text")]
    pub dtype: Option<DType>,
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

/// The name of a type to quantise to.
mod dtype_text {
    use serde::de::{Deserialize, Deserializer, Error};
    use serde::ser::{Serialize, Serializer};
    use sparrow_kernels::DType;

    pub fn serialize<S: Serializer>(dtype: &Option<DType>, s: S) -> Result<S::Ok, S::Error> {
        dtype.map(|dtype| dtype.to_string()).serialize(s)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Option<DType>, D::Error> {
        let Some(name) = Option::<String>::deserialize(d)? else { return Ok(None) };
        let dtype: DType = name.parse().map_err(D::Error::custom)?;
        match dtype.is_quantized() {
            true => Ok(Some(dtype)),
            false => Err(D::Error::custom(format!("{name} is no type to quantise to"))),
        }
    }
}

/// One setting tried in a search for a wanted quality.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Trial {
    /// What calibration was asked for: the active fraction.
    pub target_active: f64,
    /// Of the weights; none: as they are stored.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "dtype_text")]
    pub dtype: Option<DType>,
    /// Whether those of four bits were rounded by GPTQ.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub gptq: bool,
    /// Bits of a weight on average where some of these got eight bits instead, scales included.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub average_bits: Option<f64>,
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
    /// What calibration found, as every selector tells it.
    pub fn record(&self) -> Option<&dyn Record> {
        self.method.as_ref().map(Method::record)
    }

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
    /// For `gate`, by layer: weights of neurons, and what stands for them where they are left out.
    pub gate_neurons: Option<Vec<[Vec<f32>; 2]>>,
}
