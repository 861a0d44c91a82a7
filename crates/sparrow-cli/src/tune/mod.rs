//! `sparrow tune`.

mod search;
mod timing;

use std::path::PathBuf;

use anyhow::bail;
use serde::Serialize;
use sparrow::internals::record::Evaluation;
use sparrow_tools::sparsify::Stage;
use sparrow_tools::tune::{TuneOptions, Tuning};

use self::search::{Target, Tried};
use crate::model::{BosArg, CpuArgs, resolve};
use crate::output::{Bars, Format, json, percent, progress, table};

/// Settings that are this much slower than the fastest are as fast, within what a few runs tell apart.
const AS_FAST: f64 = 0.97;

/// Find the fastest way to run a model on this machine that costs no more quality than you allow, and write it as a directory.
///
/// Measures what quantising weights while they are loaded (Q8_0, int8, int4), rounding them by GPTQ, to four bits or where these cost
/// most to eight, and leaving out small inputs (selector input) cost, on text that nothing was calibrated on; times what keeps the target, taking turns; and writes the
/// fastest. The directory runs so without further options: generate -m DIR. Nothing is written that is not faster here than the model
/// as it is.
#[derive(clap::Args)]
pub struct Args {
    /// Hugging Face model directory, GGUF file, or hub id org/name[/FILE.gguf][@revision]; its weights not quantised
    #[arg(long, short, value_name = "DIR|ID", help_heading = "Model")]
    model: String,
    /// Directory to write; must not exist
    #[arg(long, short, value_name = "DIR", help_heading = "Output")]
    output: PathBuf,
    #[command(flatten)]
    target: TargetArgs,
    /// UTF-8 text: eight tenths calibrate, one is to choose on, and the last measures what was chosen
    #[arg(long, value_name = "FILE", help_heading = "Measurement")]
    text: PathBuf,
    /// Use this many tokens of the text
    #[arg(long, default_value_t = 16_384, value_name = "N", help_heading = "Measurement")]
    max_tokens: usize,
    /// Tokens per window
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(2..), help_heading = "Measurement")]
    window: u32,
    #[command(flatten, next_help_heading = "Measurement")]
    bos: BosArg,
    /// Timed runs of each setting that keeps the target, of 64 tokens after a prompt of 64
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..), help_heading = "Measurement")]
    runs: u32,
    #[command(flatten)]
    cpu: CpuArgs,
    /// Form of the output
    #[arg(long, value_enum, default_value_t, help_heading = "Output")]
    format: Format,
}

/// How much quality may be lost.
#[derive(clap::Args)]
#[group(required = true, multiple = false)]
#[command(next_help_heading = "Quality")]
struct TargetArgs {
    /// Mean KL divergence from the model as it is at most this, in nats
    #[arg(long, value_name = "NATS", value_parser = positive)]
    target_kl: Option<f64>,
    /// Perplexity at most this much above that of the model as it is, as in +1%
    #[arg(long, value_name = "PERCENT", value_parser = crate::sparsify::parse_percent)]
    target_ppl: Option<f64>,
}

fn positive(text: &str) -> Result<f64, String> {
    let value = text.parse().ok().filter(|value: &f64| value.is_finite() && *value > 0.0);
    value.ok_or_else(|| "must be a number above 0".to_owned())
}

/// What `--format json` prints.
#[derive(Serialize)]
struct Report {
    tried: Vec<Tried>,
    /// The place of what was chosen in `tried`.
    chosen: usize,
    /// Of what was chosen, on text that nothing was chosen on.
    text: String,
    quality: Evaluation,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    let dir = resolve(&args.model)?;
    let target = match (args.target.target_kl, args.target.target_ppl) {
        (Some(most), _) => Target::Divergence(most),
        (None, rise) => Target::Perplexity(rise.unwrap_or_default()),
    };
    let options = TuneOptions { window: args.window as usize, bos: args.bos.begins(), max_tokens: args.max_tokens };
    let mut bars = Bars::new(Stage::name, |stage| matches!(stage, Stage::Transposing | Stage::Writing));
    let report = |stage, done, total| bars.show(stage, done, total);
    let mut tuning = Tuning::new(&dir, &args.output, &args.text, options, &args.cpu.cpu(), report)?;
    bars.clear();

    let mut tried = search::search(&mut tuning, target)?;
    let runs = args.runs as usize;
    timing::time(&mut tuning, &mut tried, &args.text, args.cpu.threads, runs)?;
    if args.format == Format::Table {
        print(&tried)?;
    }
    let Some(chosen) = choose(&tried) else {
        bail!("no setting that keeps the target is faster here than the model as it is: nothing was written");
    };
    let trials = tried.iter().map(Tried::trial).collect();
    let bar = progress("measuring what was chosen", 1, false);
    let file = tuning.finish(tried[chosen].setting, trials, |done, all| {
        bar.set_length(all as u64);
        bar.set_position(done as u64);
    })?;
    bar.finish_and_clear();
    let (text, quality) = (file.quality.text, file.quality.evaluation);
    match args.format {
        Format::Json => json(&Report { tried, chosen, text, quality }),
        Format::Table => {
            let Tried { setting, speed_up, .. } = &tried[chosen];
            outln!("{}: {}, decoding {:.2} × as fast", args.output.display(), setting, speed_up.unwrap_or(1.0));
            let change = (quality.perplexity / quality.dense_perplexity - 1.0) * 100.0;
            outln!(
                "on the {text}: KL divergence {:.2e}, perplexity {:.4} ({change:+.2} %), same top token {}",
                quality.kl_mean,
                quality.perplexity,
                percent(quality.top1_agreement)
            );
            Ok(())
        }
    }
}

/// The one of least divergence of those that are as fast as the fastest; none if that is the model as it is.
fn choose(tried: &[Tried]) -> Option<usize> {
    let fastest = tried.iter().filter_map(|t| t.speed_up).fold(0.0, f64::max);
    let fast = tried.iter().enumerate().filter(|(_, t)| t.speed_up.is_some_and(|speed| speed >= fastest * AS_FAST));
    let (at, _) = fast.min_by(|(_, a), (_, b)| a.quality.kl_mean.total_cmp(&b.quality.kl_mean))?;
    (at > 0).then_some(at)
}

fn print(tried: &[Tried]) -> anyhow::Result<()> {
    let rows = tried.iter().map(|t| {
        let q = &t.quality;
        let change = (q.perplexity / q.dense_perplexity - 1.0) * 100.0;
        let decode = t.decode_tokens_per_s.map_or_else(String::new, |speed| format!("{speed:.1}"));
        let speed_up = t.speed_up.map_or_else(String::new, |speed| format!("{speed:.2}"));
        vec![
            t.setting.to_string(),
            percent(q.active_fraction),
            format!("{:.2e}", q.kl_mean),
            format!("{:.4} ({change:+.2} %)", q.perplexity),
            percent(q.top1_agreement),
            if t.kept { "yes" } else { "no" }.to_owned(),
            decode,
            speed_up,
        ]
    });
    let header = [
        "setting",
        "active",
        "KL mean",
        "perplexity",
        "same top token",
        "keeps the target",
        "decode tok/s",
        "÷ as stored",
    ];
    table(&header, rows)
}
