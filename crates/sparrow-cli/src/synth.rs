//! `sparrow synth`.

use std::path::PathBuf;

use sparrow::DType;

use crate::output::progress;

/// Write a random-weight Hugging Face checkpoint of a known shape.
#[derive(clap::Args)]
#[command(next_help_heading = "Model")]
pub struct Args {
    /// Shape to write
    #[arg(long, value_parser = clap::builder::PossibleValuesParser::new(sparrow_tools::shapes::names()))]
    shape: String,
    /// Directory to write; must not exist
    #[arg(long, short, value_name = "DIR", help_heading = "Output")]
    output: PathBuf,
    /// Element type: f32, f16 or bf16
    #[arg(long, default_value = "bf16")]
    dtype: DType,
    /// Write down projections neuron by neuron, as `sparsify` does: for --weights cache and selectors without calibration
    #[arg(long)]
    neuron_major: bool,
    /// Make this fraction of the weights of layers and head 0, anywhere, as if they were pruned
    #[arg(long, default_value_t = 0.0, value_name = "FRACTION", value_parser = crate::model::fraction)]
    zeros: f64,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    let bar = progress("writing weights", 0, true);
    let report = |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    };
    sparrow_tools::synth::synthesize(&args.shape, args.dtype, args.neuron_major, args.zeros, &args.output, report)?;
    bar.finish_and_clear();
    note!("wrote {}: random {} weights in the shape of {}", args.output.display(), args.dtype, args.shape);
    Ok(())
}
