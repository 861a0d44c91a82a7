//! What is measured of a row.

use serde::{Deserialize, Serialize};
use sparrow::internals::backend::{Component, Timing};

/// What the worker loaded.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Loaded {
    pub name: String,
    pub parameters: u64,
    pub dtype: String,
    /// Bytes of all matrices.
    pub weight_bytes: u64,
    /// Whether everything is computed as the model is stored, so that there is no quality to lose.
    pub as_stored: bool,
    pub isa: String,
    pub threads: usize,
}

/// Measurements of one run.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Run {
    /// From the prompts to the first token of every sequence, seconds.
    pub ttft_s: f64,
    /// From there to the last token, seconds.
    pub decode_s: f64,
    /// Prompt tokens of all sequences.
    pub prompt_tokens: usize,
    /// Tokens generated after each sequence's first.
    pub decode_tokens: usize,
    /// While decoding.
    pub active_fraction: f64,
    /// Weight bytes read while decoding ÷ `decode_tokens`.
    pub weight_bytes_per_token: f64,
    /// Bytes of neurons that the weight cache took in while decoding ÷ `decode_tokens`.
    pub cache_bytes_per_token: f64,
    /// Bytes read from storage while decoding, by whatever way, ÷ `decode_tokens`; 0 where the system does not say.
    pub storage_bytes_per_token: f64,
    /// Page faults that waited for storage while decoding ÷ `decode_tokens`.
    pub major_faults_per_token: f64,
    /// Bytes of the keys and values of all sequences after it.
    pub kv_bytes: u64,
}

/// Seconds that one decoder layer takes, averaged over the layers.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct LayerTime {
    /// All of it.
    pub all_s: f64,
    /// Attention without its norms.
    pub attention_s: f64,
    /// The MLP without its norms.
    pub mlp_s: f64,
}

/// The same of either phase.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct LayerTimes {
    /// For the prompt of one sequence.
    pub prefill: LayerTime,
    /// For one decode step of all sequences.
    pub decode: LayerTime,
}

/// Seconds per call by component.
pub struct Profile {
    /// One call per sequence.
    pub prefill: Vec<(String, Timing)>,
    /// One call per token (of all sequences).
    pub decode: Vec<(String, Timing)>,
}

impl Profile {
    /// Of the norms all but the last are in the layers.
    pub fn layer_times(&self, layers: usize) -> LayerTimes {
        let layer_time = |timings: &[(String, Timing)]| {
            let sum = |of: &[Component]| {
                let timed = timings.iter().filter(|(name, _)| of.iter().any(|component| component.name() == name));
                timed.map(|(_, timing)| timing.mean).sum::<f64>() / layers as f64
            };
            let (attention_s, mlp_s) = (sum(&Component::OF_ATTENTION), sum(&Component::OF_MLP));
            LayerTime { all_s: attention_s + mlp_s + sum(&[Component::Norm]), attention_s, mlp_s }
        };
        LayerTimes { prefill: layer_time(&self.prefill), decode: layer_time(&self.decode) }
    }
}

pub fn named(timings: Vec<(Component, Timing)>) -> Vec<(String, Timing)> {
    timings.into_iter().map(|(c, t)| (c.name().to_owned(), t)).collect()
}
