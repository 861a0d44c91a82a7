//! `sparrow sparsify`.

use std::path::PathBuf;

use indicatif::ProgressBar;
use sparrow::SelectorSpec;
use sparrow::sparsify::{SparsifyOptions, Stage, sparsify};

use crate::model::CpuArgs;
use crate::output::{Format, json, percent, progress};

/// Calibrate a model on a text and write a directory that runs sparse.
#[derive(clap::Args)]
pub struct Args {
    /// Hugging Face model directory, or hub id org/name[@revision]
    model: String,
    /// Directory to write; must not exist
    #[arg(long, short, value_name = "DIR")]
    output: PathBuf,
    /// gate (exact; lossless on ReLU models) or lowrank (predicted); with :RULE instead of calibrated thresholds, one of
    /// fixed=T, mean-std=K, top-k=N, quantile=Q
    #[arg(long, short)]
    selector: SelectorSpec,
    /// UTF-8 text to calibrate on; the last tenth of its tokens is held out and measures the quality
    #[arg(long, value_name = "FILE")]
    text: PathBuf,
    /// lowrank: rank of the predictors [default: 4 % of the intermediate size]
    #[arg(long)]
    rank: Option<usize>,
    /// lowrank: calibrate thresholds so that this fraction of the truly active neurons is found
    #[arg(long, default_value_t = 0.99)]
    recall: f64,
    /// Models without exact zeros (SiLU, GELU): fraction of neurons that count as active
    #[arg(long, default_value_t = 0.6)]
    target_active: f64,
    /// Tokens per calibration window
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(2..))]
    window: u32,
    /// Use this many tokens of the text
    #[arg(long, default_value_t = 65_536, value_name = "N")]
    max_tokens: usize,
    #[command(flatten)]
    cpu: CpuArgs,
    /// Form of the report
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    let dir = sparrow::resolve_model(&args.model)?;
    let rank = match args.rank {
        Some(rank) => rank,
        None => {
            let spec = sparrow::checkpoint::config::read_config(&dir.join("config.json"))?;
            (spec.intermediate_size as f64 * 0.04).ceil() as usize
        }
    };
    let options = SparsifyOptions {
        selector: args.selector,
        rank,
        recall: args.recall,
        target_active: args.target_active,
        window: args.window as usize,
        max_tokens: args.max_tokens,
    };
    let mut current: Option<(Stage, ProgressBar)> = None;
    let report = |stage: Stage, done: u64, total: u64| {
        if current.as_ref().is_none_or(|(s, _)| *s != stage) {
            if let Some((_, bar)) = current.take() {
                bar.finish_and_clear();
            }
            current = Some((stage, progress(describe(stage), total, stage == Stage::Writing)));
        }
        if let Some((_, bar)) = &current {
            bar.set_position(done);
        }
    };
    let file = sparsify(&dir, &args.output, &args.text, &options, &args.cpu.cpu(), report)?;
    if args.format == Format::Json {
        return json(&file);
    }
    let (e, c) = (&file.quality.evaluation, &file.calibration);
    outln!("{}: selector {}, calibrated on {} tokens of {}", args.output.display(), file.selector, c.tokens, c.file);
    outln!(
        "on the {}: perplexity {:.4}, dense {:.4} ({:+.2} %); KL divergence {:.2e}; {} of neurons active",
        file.quality.text,
        e.perplexity,
        e.dense_perplexity,
        (e.perplexity / e.dense_perplexity - 1.0) * 100.0,
        e.kl_mean,
        percent(e.active_fraction),
    );
    for (i, q) in file.quality.selection.iter().enumerate() {
        outln!(
            "  layer {i}: {} active, {} truly; recall {}, precision {}",
            percent(e.active_fraction_per_layer[i]),
            percent(q.true_active_fraction),
            percent(q.recall),
            percent(q.precision)
        );
    }
    Ok(())
}

fn describe(stage: Stage) -> &'static str {
    match stage {
        Stage::Observing => "observing activations",
        Stage::Predicting => "computing predictors",
        Stage::Thresholding => "calibrating thresholds",
        Stage::Evaluating => "measuring quality",
        Stage::Writing => "writing weights",
    }
}
