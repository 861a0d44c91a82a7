//! `sparrow experiments`: a grid of settings → a sheet of rows to edit → every row measured in a process of its own → a page
//! that compares them.

mod column;
mod compare;
mod experiment;
mod grid;
mod measure;
mod report;
mod results;
mod run;
mod sheet;

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

/// The grid that `generate` takes if it is given none.
const EXAMPLE: &str = include_str!("example.toml");

/// Measure many settings, one process each, and compare them.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    /// Write experiments.csv: a row for every combination of a grid's values, to edit and run
    #[command(after_long_help = column::help())]
    Generate(GenerateArgs),
    /// Run the rows of experiments.csv; an interrupted run goes on when called again
    #[command(after_long_help = measure::help())]
    Run(run::Args),
}

/// Write experiments.csv from a grid.
#[derive(clap::Args)]
struct GenerateArgs {
    /// TOML file: columns of experiments.csv, each with a value or a list of values [default: what --example prints]
    grid: Option<PathBuf>,
    /// File to write; must not exist, unless --force
    #[arg(long, short, default_value = "experiments.csv", value_name = "FILE")]
    output: PathBuf,
    /// Replace the file
    #[arg(long)]
    force: bool,
    /// Print an example of a grid, with comments, and write nothing
    #[arg(long, conflicts_with_all = ["grid", "output", "force"])]
    example: bool,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    match args.command {
        Command::Generate(args) if args.example => {
            outln!("{}", EXAMPLE.trim_end());
            Ok(())
        }
        Command::Generate(args) => generate(&args),
        Command::Run(args) => run::run(&args),
    }
}

fn generate(args: &GenerateArgs) -> anyhow::Result<()> {
    let experiments = match &args.grid {
        Some(path) => {
            let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
            grid::experiments(path, &text)?
        }
        None => grid::experiments(Path::new("the example"), EXAMPLE)?,
    };
    if args.output.exists() && !args.force {
        bail!("{} exists: pass --force to replace it, or -o FILE", args.output.display());
    }
    crate::output::write_whole(&args.output, &sheet::text(&experiments)?)?;
    note!("wrote {}: {} rows; run them with `sparrow experiments run {0}`", args.output.display(), experiments.len());
    Ok(())
}
