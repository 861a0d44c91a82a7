//! From logits to the next token: options, the sampler, and log-probabilities.
//!
//! A row of logits goes through, in this order (that of vLLM): logit bias, repetition penalty, frequency and presence
//! penalties, temperature, `top_k`, `min_p`, `top_p`, one draw. Everything is basic arithmetic in a fixed order, so the
//! same logits, options and seed give the same token on every platform.

mod logprobs;
mod options;
mod penalties;
mod ranking;
mod sampler;
mod softmax;
#[cfg(test)]
mod tests;

pub use logprobs::{Sampled, TokenLogprob, logprobs};
pub use options::{MAX_TOP_LOGPROBS, SampleOptions};
pub use sampler::Sampler;
