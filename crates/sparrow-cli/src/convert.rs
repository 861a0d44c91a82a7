//! `sparrow convert`.

use std::path::PathBuf;

use sparrow::DType;

use crate::model::resolve;
use crate::output::progress;

/// Write a GGUF file as a Hugging Face directory.
///
/// Weights are decoded to bf16, or to --dtype; configuration, tokenizer and chat template are written as transformers reads them.
#[derive(clap::Args)]
pub struct Args {
    /// GGUF file (of a model in several files, the first), or hub id org/name/FILE.gguf[@revision]
    #[arg(value_name = "FILE|ID")]
    model: String,
    /// Directory to write; must not exist
    #[arg(long, short, value_name = "DIR", help_heading = "Output")]
    output: PathBuf,
    /// Element type of the matrices: f32, f16 or bf16 [default: bf16 for blocks, floats as they are]
    #[arg(long)]
    dtype: Option<DType>,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    let path = resolve(&args.model)?;
    let bar = progress("writing weights", 0, true);
    sparrow_tools::convert::convert(&path, &args.output, args.dtype, |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    })?;
    bar.finish_and_clear();
    note!("wrote {}", args.output.display());
    Ok(())
}
