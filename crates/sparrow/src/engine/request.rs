//! What is asked of an engine.

use crate::text::sample::SampleOptions;

/// A prompt to go on with, how, and when to stop.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// Token ids; at least one.
    pub prompt: Vec<u32>,
    /// How tokens are chosen.
    pub sample: SampleOptions,
    /// Tokens to generate at most.
    pub max_new_tokens: usize,
    /// Texts that end generation; they are not part of the output.
    pub stop: Vec<String>,
    /// Go on past the model's end-of-sequence ids.
    pub ignore_eos: bool,
    /// Ids that end generation beside those of the model, as one that ends a turn of a conversation does.
    pub stop_tokens: Vec<u32>,
    /// Report log-probabilities, of the chosen token and of as many others as [`SampleOptions::top_logprobs`] says.
    pub logprobs: bool,
}
