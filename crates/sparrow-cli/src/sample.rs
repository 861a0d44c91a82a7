//! Options that say how tokens are chosen.

use sparrow::internals::text::sample::SampleOptions;

/// How tokens are chosen.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Sampling")]
pub struct SampleArgs {
    /// Divide logits by this before sampling; 0 is greedy [default: 0; in a chat what the model suggests]
    #[arg(long, value_name = "X")]
    temperature: Option<f32>,
    /// Sample from the K most likely tokens; 0 is all [default: 0; in a chat what the model suggests]
    #[arg(long, value_name = "K")]
    top_k: Option<usize>,
    /// Sample from the most likely tokens that together reach probability P [default: 1; in a chat what the model suggests]
    #[arg(long, value_name = "P")]
    top_p: Option<f32>,
    /// Leave out tokens less than P times as likely as the most likely one [default: 0; in a chat what the model suggests]
    #[arg(long, value_name = "P")]
    min_p: Option<f32>,
    /// Make tokens that already occurred less likely; 1 is off [default: 1; in a chat what the model suggests]
    #[arg(long, value_name = "X")]
    repetition_penalty: Option<f32>,
    /// Take this from the logits of tokens that were generated already, once; 0 is off
    #[arg(long, default_value_t = 0.0, value_name = "X", allow_negative_numbers = true, hide_short_help = true)]
    presence_penalty: f32,
    /// Take this from the logits of tokens that were generated already, as often as they were; 0 is off
    #[arg(long, default_value_t = 0.0, value_name = "X", allow_negative_numbers = true, hide_short_help = true)]
    frequency_penalty: f32,
    /// Add BIAS to the logit of a token id; -inf forbids it (repeatable)
    #[arg(long, value_name = "ID=BIAS", value_parser = logit_bias, hide_short_help = true)]
    logit_bias: Vec<(u32, f32)>,
    /// Same seed, same text
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

impl SampleArgs {
    /// The options that were given, the others as in `default`.
    pub fn options(&self, default: SampleOptions) -> SampleOptions {
        SampleOptions {
            temperature: self.temperature.unwrap_or(default.temperature),
            top_k: self.top_k.unwrap_or(default.top_k),
            top_p: self.top_p.unwrap_or(default.top_p),
            min_p: self.min_p.unwrap_or(default.min_p),
            repetition_penalty: self.repetition_penalty.unwrap_or(default.repetition_penalty),
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
            logit_bias: self.logit_bias.clone(),
            top_logprobs: default.top_logprobs,
            seed: self.seed,
        }
    }
}

fn logit_bias(text: &str) -> Result<(u32, f32), String> {
    let parsed = text.split_once('=').and_then(|(id, bias)| Some((id.parse().ok()?, bias.parse().ok()?)));
    parsed.ok_or_else(|| format!("{text:?} is not a token id and a number: write 42=-1.5 or 42=-inf"))
}
