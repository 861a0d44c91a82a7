//! `sparrow sparsify`.

use std::path::PathBuf;
use std::str::FromStr;

use sparrow::SelectorSpec;
use sparrow::internals::checkpoint::config::read_config;
use sparrow::internals::record::Trial;
use sparrow::internals::select::Threshold;
use sparrow_tools::sparsify::{Goal, Sparsified, SparsifyOptions, Stage, calibrated, sparsify};

use crate::model::{BosArg, CpuArgs, resolve};
use crate::output::{Bars, Format, LayersArg, by_layer, json, percent, table};
use crate::report;

/// Calibrate a model on a text and write a directory that runs sparse.
#[derive(clap::Args)]
pub struct Args {
    /// Hugging Face model directory, GGUF file, or hub id org/name[/FILE.gguf][@revision]
    #[arg(help_heading = "Model")]
    model: String,
    /// Directory to write; must not exist
    #[arg(long, short, value_name = "DIR", help_heading = "Output")]
    output: PathBuf,
    #[arg(long, short, help = selector_help(), long_help = selector_long_help(), help_heading = "Sparsity")]
    selector: SelectorSpec,
    /// UTF-8 text to calibrate on; the last tenth of its tokens is held out and measures the quality
    #[arg(long, value_name = "FILE", help_heading = "Calibration")]
    text: PathBuf,
    #[command(flatten)]
    goal: GoalArgs,
    /// lowrank: rank of the predictors, as a count or a fraction of the intermediate size
    #[arg(long, default_value = "0.04", value_name = "N|FRACTION", help_heading = "Sparsity")]
    rank: Rank,
    /// lowrank: predict from the attention's input, one block ahead, so that a slow store can be read in time
    #[arg(long, help_heading = "Sparsity")]
    look_ahead: bool,
    /// lowrank: train the predictors for this many passes over the text, and keep that if it helps
    ///
    /// An interrupted run goes on when called again.
    #[arg(long, default_value_t = 0, value_name = "N", help_heading = "Calibration")]
    epochs: usize,
    /// Also measure a range of active fractions and write a page with plots
    #[arg(long, value_name = "FILE.html", help_heading = "Output")]
    report: Option<PathBuf>,
    /// Tokens per calibration window
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(2..), help_heading = "Calibration")]
    window: u32,
    #[command(flatten, next_help_heading = "Calibration")]
    bos: BosArg,
    /// Use this many tokens of the text
    #[arg(long, default_value_t = 65_536, value_name = "N", help_heading = "Calibration")]
    max_tokens: usize,
    #[command(flatten)]
    cpu: CpuArgs,
    /// Form of the output
    #[arg(long, value_enum, default_value_t, help_heading = "Output")]
    format: Format,
    #[command(flatten)]
    layers: LayersArg,
}

/// What thresholds are calibrated for.
#[derive(clap::Args)]
#[group(multiple = false)]
#[command(next_help_heading = "Sparsity")]
struct GoalArgs {
    /// lowrank, sign: find this fraction of the truly active neurons [default on ReLU models: 0.99]
    #[arg(long, value_name = "FRACTION")]
    recall: Option<f64>,
    /// Keep this fraction of the neurons, or of the layers' weights for input and skip
    ///
    /// [default: 0.6; skip 0.9; gate on ReLU models all that is not zero]
    #[arg(long, value_name = "FRACTION")]
    target_active: Option<f64>,
    /// Keep as little as lets perplexity rise by at most this much, as in +1% (searched on a tenth of the text)
    #[arg(long, value_name = "PERCENT", value_parser = parse_percent)]
    target_ppl: Option<f64>,
    /// Keep as little as leaves the mean KL divergence from dense at most this, in nats (searched likewise)
    #[arg(long, value_name = "NATS")]
    target_kl: Option<f64>,
}

impl GoalArgs {
    fn goal(&self) -> Option<Goal> {
        let recall = self.recall.map(Goal::Recall);
        let active = self.target_active.map(Goal::Active);
        recall.or(active).or(self.target_ppl.map(Goal::Perplexity)).or(self.target_kl.map(Goal::Divergence))
    }
}

pub fn parse_percent(text: &str) -> Result<f64, String> {
    let number = text.strip_prefix('+').unwrap_or(text).strip_suffix('%').map(str::trim_end).map(str::parse::<f64>);
    match number {
        Some(Ok(percent)) if percent.is_finite() && percent > 0.0 => Ok(percent / 100.0),
        _ => Err(format!("{text:?} is not a percentage above 0: write +1% or 0.5%")),
    }
}

/// A count, or a fraction of the intermediate size.
#[derive(Debug, Clone, Copy)]
enum Rank {
    Count(usize),
    Fraction(f64),
}

impl FromStr for Rank {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(count) = text.parse() {
            return Ok(Rank::Count(count));
        }
        match text.parse() {
            Ok(fraction) if fraction > 0.0 && fraction < 1.0 => Ok(Rank::Fraction(fraction)),
            _ => Err(format!("{text:?} is neither a whole number nor a fraction between 0 and 1")),
        }
    }
}

impl Rank {
    fn of(self, intermediate: usize) -> usize {
        match self {
            Rank::Count(count) => count,
            Rank::Fraction(fraction) => (intermediate as f64 * fraction).ceil() as usize,
        }
    }
}

/// What `--selector` may be.
fn selector_help() -> String {
    format!("What to calibrate: {}", calibrated().map(|kind| kind.usage()).collect::<Vec<_>>().join(", "))
}

/// And what each does.
fn selector_long_help() -> String {
    let lines: String = calibrated().map(|kind| format!("  {}: {}\n", kind.usage(), kind.help())).collect();
    format!("{}\n\n{lines}RULE, instead of calibrated thresholds, is {}", selector_help(), Threshold::USAGE)
}

pub fn run(args: Args) -> anyhow::Result<()> {
    let dir = resolve(&args.model)?;
    let spec = read_config(&dir.join("config.json"))?;
    let options = SparsifyOptions {
        selector: args.selector,
        rank: args.rank.of(spec.intermediate_size),
        look_ahead: args.look_ahead,
        epochs: args.epochs,
        goal: args.goal.goal(),
        curve: args.report.is_some(),
        settings: Vec::new(),
        window: args.window as usize,
        bos: args.bos.begins(),
        max_tokens: args.max_tokens,
    };
    if let Some(path) = &args.report {
        report::check(path)?;
    }
    let mut bars = Bars::new(Stage::name, |stage| matches!(stage, Stage::Transposing | Stage::Writing));
    let report = |stage, done, total| bars.show(stage, done, total);
    let made = sparsify(&dir, &args.output, &args.text, &options, &args.cpu.cpu(), report)?;
    bars.clear();
    if args.epochs > 0 && made.file.record().and_then(|record| record.predictors()).is_some_and(|(_, trained)| !trained)
    {
        note!("training told active neurons apart no better than the closed form, which is what was written");
    }
    if let Some(path) = &args.report {
        report::write(path, &args.model, &made)?;
        note!("wrote {}", path.display());
    }
    match args.format {
        Format::Json => json(&made.file),
        Format::Table => print(&args.output, &made, args.layers.layers),
    }
}

fn print(output: &std::path::Path, made: &Sparsified, layers: bool) -> anyhow::Result<()> {
    let file = &made.file;
    let (e, c) = (&file.quality.evaluation, &file.calibration);
    if layers {
        print_layers(made)?;
    }
    outln!(
        "{}: {}, calibrated on {} tokens of {}",
        output.display(),
        file.record().map_or_else(|| "dense".to_owned(), |record| record.describe()),
        c.tokens,
        c.file
    );
    if !file.search.is_empty() {
        print_trials(&file.search)?;
    }
    if let Some(bars) = by_layer(&e.active_fraction_per_layer) {
        outln!("active by layer {bars}");
    }
    outln!(
        "on the {}: perplexity {:.4}, dense {:.4} ({:+.2} %); KL divergence {:.2e}; {} active",
        file.quality.text,
        e.perplexity,
        e.dense_perplexity,
        (e.perplexity / e.dense_perplexity - 1.0) * 100.0,
        e.kl_mean,
        percent(e.active_fraction),
    );
    Ok(())
}

fn print_layers(made: &Sparsified) -> anyhow::Result<()> {
    let file = &made.file;
    let layers = file.quality.evaluation.active_fraction_per_layer.iter().enumerate().map(|(i, &active)| {
        let mut row = vec![format!("layer {i}"), percent(active)];
        if let Some(q) = file.quality.selection.get(i) {
            row.extend([q.true_active_fraction, q.recall, q.precision, file.quality.overlap[i]].map(percent));
        }
        row
    });
    let header = ["", "active", "truly active", "recall", "precision", "overlap"];
    table(&header[..if file.quality.selection.is_empty() { 2 } else { 6 }], layers)
}

fn print_trials(trials: &[Trial]) -> anyhow::Result<()> {
    let rows = trials.iter().map(|t| {
        vec![
            percent(t.target_active),
            percent(t.active_fraction),
            format!("{:.4} ({:+.2} %)", t.perplexity, (t.perplexity / t.dense_perplexity - 1.0) * 100.0),
            format!("{:.2e}", t.kl_mean),
            if t.accepted { "yes" } else { "no" }.to_owned(),
        ]
    });
    table(&["tried", "active", "perplexity", "KL mean", "accepted"], rows)
}
