//! What can be asked of a sampler, and within which ranges.

use crate::error::{Error, Result};

/// Most alternatives that [`SampleOptions::top_logprobs`] may ask for, as with OpenAI's API.
pub const MAX_TOP_LOGPROBS: usize = 20;

/// How the next token is chosen. The default is greedy.
#[derive(Debug, Clone, PartialEq)]
pub struct SampleOptions {
    /// Logits are divided by this; 0 takes the most likely token, after bias and penalties, and ignores the rest.
    pub temperature: f32,
    /// Keep the `k` most likely tokens; 0 keeps all.
    pub top_k: usize,
    /// Keep the smallest set of most likely tokens whose probability reaches this (nucleus, arXiv 1904.09751); 1 keeps all.
    pub top_p: f32,
    /// Keep tokens at least this fraction as likely as the most likely one (arXiv 2407.01082); 0 keeps all.
    pub min_p: f32,
    /// Logits of tokens in the prompt or the output are divided (if positive) or multiplied by this (arXiv 1909.05858); 1 is off.
    pub repetition_penalty: f32,
    /// Taken once from the logits of tokens in the output, -2 to 2; 0 is off. As with OpenAI and vLLM the prompt does
    /// not count (with llama.cpp the last 64 tokens of both do).
    pub presence_penalty: f32,
    /// Taken from the logits of tokens in the output as often as they occur there, -2 to 2; 0 is off.
    pub frequency_penalty: f32,
    /// Added to the logits of these token ids, before the penalties: finite, or -∞, which forbids the token. What is said twice
    /// of one id is added up.
    pub logit_bias: Vec<(u32, f32)>,
    /// How many of the most likely tokens [`Sampler::sample_with_logprobs`](super::Sampler::sample_with_logprobs) reports,
    /// at most [`MAX_TOP_LOGPROBS`].
    pub top_logprobs: usize,
    /// Same seed, same text.
    pub seed: u64,
}

impl Default for SampleOptions {
    fn default() -> Self {
        SampleOptions {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            top_logprobs: 0,
            seed: 0,
        }
    }
}

impl SampleOptions {
    /// Checks every option for a vocabulary of `vocab` tokens.
    pub(super) fn check(&self, vocab: usize) -> Result<()> {
        let check = |option, ok: bool, range: &str, value: f32| match ok {
            true => Ok(()),
            false => Err(Error::option(option, format!("must be {range}, found {value}"))),
        };
        let positive = |x: f32| x > 0.0 && x.is_finite();
        let penalty = -2.0..=2.0;
        check("temperature", self.temperature == 0.0 || positive(self.temperature), "0 or above", self.temperature)?;
        check("top_p", self.top_p > 0.0 && self.top_p <= 1.0, "above 0 and at most 1", self.top_p)?;
        check("min_p", (0.0..=1.0).contains(&self.min_p), "in 0..=1", self.min_p)?;
        check("repetition_penalty", positive(self.repetition_penalty), "above 0", self.repetition_penalty)?;
        check("presence_penalty", penalty.contains(&self.presence_penalty), "in -2..=2", self.presence_penalty)?;
        check("frequency_penalty", penalty.contains(&self.frequency_penalty), "in -2..=2", self.frequency_penalty)?;
        for &(id, bias) in &self.logit_bias {
            if id as usize >= vocab {
                let message = format!("token ids must be below {vocab}, the size of the vocabulary, found {id}");
                return Err(Error::option("logit_bias", message));
            }
            check("logit_bias", bias < f32::INFINITY, "finite or -inf", bias)?;
        }
        match self.top_logprobs {
            0..=MAX_TOP_LOGPROBS => Ok(()),
            n => Err(Error::option("top_logprobs", format!("must be at most {MAX_TOP_LOGPROBS}, found {n}"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_out_of_range_are_refused_by_name() {
        let default = SampleOptions::default;
        let bias = |id, bias| SampleOptions { logit_bias: vec![(id, bias)], ..default() };
        for (option, options) in [
            ("temperature", SampleOptions { temperature: -1.0, ..default() }),
            ("temperature", SampleOptions { temperature: f32::NAN, ..default() }),
            ("top_p", SampleOptions { top_p: 0.0, ..default() }),
            ("min_p", SampleOptions { min_p: 1.5, ..default() }),
            ("repetition_penalty", SampleOptions { repetition_penalty: 0.0, ..default() }),
            ("presence_penalty", SampleOptions { presence_penalty: 2.1, ..default() }),
            ("presence_penalty", SampleOptions { presence_penalty: f32::NAN, ..default() }),
            ("frequency_penalty", SampleOptions { frequency_penalty: -2.1, ..default() }),
            ("logit_bias", bias(4, 1.0)),
            ("logit_bias", bias(0, f32::NAN)),
            ("logit_bias", bias(0, f32::INFINITY)),
            ("top_logprobs", SampleOptions { top_logprobs: 21, ..default() }),
        ] {
            let message = options.check(4).unwrap_err().to_string();
            assert!(message.starts_with(&format!("{option}: ")), "{message}");
        }
        let extremes = SampleOptions {
            presence_penalty: -2.0,
            frequency_penalty: 2.0,
            logit_bias: vec![(3, f32::NEG_INFINITY), (0, 100.0)],
            top_logprobs: 20,
            ..default()
        };
        extremes.check(4).unwrap();
        let message = SampleOptions { presence_penalty: 3.0, ..default() }.check(4).unwrap_err().to_string();
        assert_eq!(message, "presence_penalty: must be in -2..=2, found 3");
    }
}
