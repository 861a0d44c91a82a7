//! What sparsity costs in quality, as it is measured and written.

use serde::{Deserialize, Serialize};

/// Quality of a model, sparse in whatever way, against a reference, the dense model, over the same windows of a text.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// Tokens predicted.
    pub tokens: usize,
    /// `exp` of the mean negative log-likelihood.
    pub perplexity: f64,
    /// The same, of the reference.
    pub dense_perplexity: f64,
    /// Mean over tokens of KL(dense ‖ sparse) of the next-token distributions, in nats.
    pub kl_mean: f64,
    /// Its 99th percentile.
    pub kl_p99: f64,
    /// Fraction of tokens where both find the same token most likely.
    pub top1_agreement: f64,
    /// Active neurons ÷ all, averaged over tokens and layers.
    pub active_fraction: f64,
    /// The same, per layer.
    pub active_fraction_per_layer: Vec<f64>,
}

/// How well a selector finds the truly active neurons of one layer.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct PredictorQuality {
    /// Truly active neurons that were selected ÷ truly active.
    pub recall: f64,
    /// Truly active neurons that were selected ÷ selected.
    pub precision: f64,
    /// Truly active ÷ all.
    pub true_active_fraction: f64,
}
