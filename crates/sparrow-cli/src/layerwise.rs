//! What commands share that change a model layer by layer: `prune` and `quantize`.

use std::path::PathBuf;

use sparrow::internals::record::CalibrationText;
use sparrow_tools::prune::MeasuredQuality;

use crate::model::BosArg;
use crate::output::percent;

/// Which tensors.
#[derive(clap::Args)]
pub struct ChoiceArgs {
    /// Change only tensors whose names fit a pattern of *, ? and [...]; may be repeated [default: every matrix of the decoder layers]
    #[arg(long, value_name = "GLOB")]
    pub include: Vec<String>,
    /// Leave tensors whose names fit a pattern as they are; may be repeated
    #[arg(long, value_name = "GLOB")]
    pub exclude: Vec<String>,
}

/// What to calibrate on.
#[derive(clap::Args)]
pub struct CalibrationArgs {
    /// UTF-8 text to calibrate on; the last tenth of its tokens is held out and measures the quality
    #[arg(long, value_name = "FILE")]
    pub text: PathBuf,
    /// Tokens per calibration window
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(2..))]
    pub window: u32,
    #[command(flatten)]
    pub bos: BosArg,
    /// Use this many tokens of the text
    #[arg(long, alias = "tokens", default_value_t = 65_536, value_name = "N")]
    pub max_tokens: usize,
}

/// What a calibration read, as the end of a sentence.
pub fn calibrated(text: &CalibrationText) -> String {
    match text.tokens {
        0 => String::new(),
        tokens => format!(", calibrated on {tokens} tokens of {}", text.file),
    }
}

/// What a change cost, in a few words.
pub fn cost(quality: &MeasuredQuality) -> String {
    let e = &quality.evaluation;
    format!(
        "perplexity {:.4}, before {:.4} ({:+.2} %); KL divergence {:.2e}; same top token {} ({})",
        e.perplexity,
        e.dense_perplexity,
        (e.perplexity / e.dense_perplexity - 1.0) * 100.0,
        e.kl_mean,
        percent(e.top1_agreement),
        quality.text
    )
}
