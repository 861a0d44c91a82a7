//! `sparrow prune`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use sparrow_tools::prune::{Allocation, Method, Pattern, PruneOptions, PruningRecord, Stage, Target, prune};

use crate::layerwise::{CalibrationArgs, ChoiceArgs, calibrated, cost};
use crate::model::CpuArgs;
use crate::output::{Bars, Format, LayersArg, json, percent, table};

/// Set the weights of a model that matter least to zero, and write it as a directory like the one it came from. An interrupted run
/// goes on when called again.
#[derive(clap::Args)]
pub struct Args {
    /// Hugging Face model directory, GGUF file, or hub id org/name[/FILE.gguf][@revision]
    #[arg(long, short, value_name = "DIR|ID", help_heading = "Model")]
    model: String,
    /// Directory to write; must not exist
    #[arg(long, short, value_name = "DIR", help_heading = "Output")]
    output: PathBuf,
    /// How weights are chosen: magnitude, wanda or sparsegpt
    ///
    /// magnitude: |w|, over a matrix; wanda: |w| times the norm of its input, in an output's row; sparsegpt: what the row's other
    /// weights, which are changed, make up for best.
    #[arg(long, help_heading = "Sparsity")]
    method: Method,
    #[command(flatten)]
    target: TargetArgs,
    /// uniform, owl or worth
    ///
    /// owl: layers with more outliers keep more, at most 8 points from the target, which is the mean; worth: matrices whose errors change
    /// more of what the model predicts keep more, at most 15 points from it, which is measured first.
    #[arg(long, default_value_t, help_heading = "Sparsity")]
    allocation: Allocation,
    #[command(flatten, next_help_heading = "Sparsity")]
    choice: ChoiceArgs,
    #[command(flatten, next_help_heading = "Calibration")]
    calibration: CalibrationArgs,
    #[command(flatten)]
    cpu: CpuArgs,
    /// Form of the output
    #[arg(long, value_enum, default_value_t, help_heading = "Output")]
    format: Format,
    #[command(flatten)]
    layers: LayersArg,
}

/// How much of each matrix goes.
#[derive(clap::Args)]
#[group(required = true, multiple = false)]
#[command(next_help_heading = "Sparsity")]
struct TargetArgs {
    /// Zero this fraction, 0.2 to 0.8
    #[arg(long, value_name = "FRACTION")]
    sparsity: Option<f64>,
    /// Keep N of every M weights along the input, as in 2:4
    #[arg(long, value_name = "N:M")]
    pattern: Option<Pattern>,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    let dir = crate::model::resolve(&args.model)?;
    let TargetArgs { sparsity, pattern } = args.target;
    let target = sparsity.map(Target::Sparsity).or(pattern.map(Target::Pattern)).expect("one is required");
    let options = PruneOptions {
        allocation: args.allocation,
        include: args.choice.include,
        exclude: args.choice.exclude,
        window: args.calibration.window as usize,
        bos: args.calibration.bos.begins(),
        max_tokens: args.calibration.max_tokens,
        ..PruneOptions::new(args.method, target)
    };
    let mut bars = Bars::new(|stage: Stage| stage.name("pruning layers"), |_| false);
    let report = |stage, done, total| bars.show(stage, done, total);
    let record = prune(&dir, &args.output, &args.calibration.text, &options, &args.cpu.cpu(), report)?;
    bars.clear();
    match args.format {
        Format::Json => json(&record),
        Format::Table => print(&args.output, &record, args.layers.layers),
    }
}

fn print(output: &Path, record: &PruningRecord, layers: bool) -> anyhow::Result<()> {
    if layers {
        print_layers(record)?;
    }
    outln!("{}: {}", output.display(), describe(record));
    outln!("{}", cost(&record.quality));
    Ok(())
}

fn print_layers(record: &PruningRecord) -> anyhow::Result<()> {
    // A tensor's role is what remains of its name without the layer's number; in the order of the roles' names.
    let role = |name: &str| {
        let after = name.split('.').skip_while(|part| part.parse::<usize>().is_err()).skip(1);
        after.filter(|part| *part != "weight").collect::<Vec<_>>().join(".")
    };
    let layers: Vec<BTreeMap<String, f64>> =
        record.layers.iter().map(|layer| layer.tensors.iter().map(|(n, &s)| (role(n), s)).collect()).collect();
    let roles: Vec<&String> =
        layers.iter().flat_map(BTreeMap::keys).collect::<std::collections::BTreeSet<_>>().into_iter().collect();
    let rows = layers.iter().enumerate().map(|(l, tensors)| {
        let zeros = roles.iter().map(|role| tensors.get(*role).map_or_else(String::new, |&s| percent(s)));
        std::iter::once(format!("layer {l}")).chain(zeros).collect()
    });
    let header: Vec<&str> = std::iter::once("zeros").chain(roles.iter().map(|role| role.as_str())).collect();
    table(&header, rows)
}

/// What was done to a model, in a few words.
pub fn describe(record: &PruningRecord) -> String {
    let PruningRecord { method, target, allocation, calibration, .. } = record;
    format!(
        "{method} to {target}, {allocation}; {} of the weights of its tensors are zero{}",
        percent(record.sparsity),
        calibrated(calibration)
    )
}
