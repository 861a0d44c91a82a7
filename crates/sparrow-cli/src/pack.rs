//! `sparrow pack`.

use std::path::PathBuf;

use serde_json::json;
use sparrow_tools::pack::{PackOptions, PackedTensor, pack};

use crate::model::{CpuArgs, StorageArgs, demo_dir};
use crate::output::{self, Format, percent, progress};

/// Write a pruned model with its matrices as bitmaps and their non-zero elements.
///
/// Tensors are those of compressed-tensors' sparse-bitmask format, described in config.json, and load without unpacking. What is not pruned enough to be
/// faster so stays as it is, unless --weights-format bitmap asks for it.
#[derive(clap::Args)]
#[command(next_help_heading = "Model")]
pub struct Args {
    /// Hugging Face model directory, GGUF file, or hub id org/name[/FILE.gguf][@revision] [default: the bundled demo model]
    #[arg(long, short, value_name = "DIR|ID")]
    model: Option<String>,
    /// Directory to write; must not exist
    #[arg(long, short, value_name = "DIR", help_heading = "Output")]
    output: PathBuf,
    #[command(flatten)]
    storage: StorageArgs,
    #[command(flatten)]
    cpu: CpuArgs,
    /// Form of the output
    #[arg(long, value_enum, default_value_t, help_heading = "Output")]
    format: Format,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    let dir = match &args.model {
        Some(model) => crate::model::resolve(model)?,
        None => demo_dir()?,
    };
    let bar = progress("packing", 0, true);
    let options = PackOptions { dtype: args.storage.dtype, format: args.storage.weights_format };
    let packed = pack(&dir, &args.output, &options, &args.cpu.cpu(), |done, total| {
        bar.set_length(total);
        bar.set_position(done);
    })?;
    bar.finish_and_clear();
    if args.format == Format::Json {
        return output::json(&json!({ "output": args.output.display().to_string(), "tensors": packed }));
    }
    let sum = |of: fn(&PackedTensor) -> u64| packed.iter().map(of).sum::<u64>();
    let (before, after) = (sum(|t| t.bytes_before), sum(|t| t.bytes_after));
    let row = |t: &PackedTensor| {
        let [rows, cols] = t.shape;
        let bytes = output::bytes(t.bytes_after);
        vec![t.name.clone(), t.dtype.clone(), format!("{rows} × {cols}"), percent(1.0 - t.density), bytes]
    };
    output::table(&["tensor", "dtype", "shape", "zeros", "bytes"], packed.iter().map(row))?;
    note!(
        "wrote {}: {} matrices packed, {} instead of {}",
        args.output.display(),
        packed.len(),
        output::bytes(after),
        output::bytes(before)
    );
    Ok(())
}
