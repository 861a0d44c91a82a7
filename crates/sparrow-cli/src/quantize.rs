//! `sparrow quantize`.

use std::path::PathBuf;

use sparrow_tools::quantize::{Along, Method, QuantizationRecord, QuantizeOptions, Stage, quantize};

use crate::layerwise::{CalibrationArgs, ChoiceArgs, calibrated, cost};
use crate::model::CpuArgs;
use crate::output::{Bars, Format, json};

/// Round the weights of a model's linear layers to 4 or 8 bits, and write it as a directory in the format of compressed-tensors, which
/// transformers loads and vLLM reads. Embeddings, norms and the head stay as they are. An interrupted run goes on when called again.
#[derive(clap::Args)]
pub struct Args {
    /// Hugging Face model directory, GGUF file, or hub id org/name[/FILE.gguf][@revision]
    #[arg(long, short, value_name = "DIR|ID", help_heading = "Model")]
    model: String,
    /// Directory to write; must not exist
    #[arg(long, short, value_name = "DIR", help_heading = "Output")]
    output: PathBuf,
    /// How weights are rounded: rtn, gptq or awq
    ///
    /// rtn: each to the nearest value, with the scales of least squared error; gptq: one input after the other, later inputs making up
    /// for what rounding earlier ones did to the outputs; awq: to the nearest, after inputs that matter more were scaled up.
    #[arg(long, help_heading = "Quantisation")]
    method: Method,
    /// Bits of a weight, 4 or 8; those of 8 have one scale per row
    #[arg(long, default_value_t = 4, value_name = "4|8", help_heading = "Quantisation")]
    bits: u32,
    /// Give 8 bits to the matrices where 4 cost most, as far as the weights take no more than this on average, scales included
    ///
    /// What 4 bits cost is measured on the first tokens of the text. Matrices that read the same input get the same.
    #[arg(long, value_name = "BITS", help_heading = "Quantisation")]
    average_bits: Option<f64>,
    /// Weights of 4 bits that share a scale: 32, 64 or 128 [default: 32]
    #[arg(long, value_name = "N", help_heading = "Quantisation")]
    group: Option<usize>,
    /// Where weights that share a scale lie: along the input or output
    ///
    /// input: what transformers and vLLM read; output: a row for each input, which `sparrow sparsify --selector input` can leave out
    /// and only Sparrow reads.
    #[arg(long, value_name = "SIDE", default_value_t, help_heading = "Quantisation")]
    along: Along,
    /// Give groups of 4 bits a zero point each, half a byte, instead of a symmetric range
    #[arg(long, help_heading = "Quantisation")]
    zero_points: bool,
    #[command(flatten, next_help_heading = "Quantisation")]
    choice: ChoiceArgs,
    #[command(flatten, next_help_heading = "Calibration")]
    calibration: CalibrationArgs,
    #[command(flatten)]
    cpu: CpuArgs,
    /// Form of the output
    #[arg(long, value_enum, default_value_t, help_heading = "Output")]
    format: Format,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    let dir = crate::model::resolve(&args.model)?;
    let usual = QuantizeOptions::new(args.method, args.bits);
    let options = QuantizeOptions {
        average_bits: args.average_bits,
        group: args.group.or(usual.group),
        along: args.along,
        zero_points: args.zero_points,
        include: args.choice.include,
        exclude: args.choice.exclude,
        window: args.calibration.window as usize,
        bos: args.calibration.bos.begins(),
        max_tokens: args.calibration.max_tokens,
        ..usual
    };
    let mut bars = Bars::new(|stage: Stage| stage.name("quantising layers"), |_| false);
    let report = |stage, done, total| bars.show(stage, done, total);
    let record = quantize(&dir, &args.output, &args.calibration.text, &options, &args.cpu.cpu(), report)?;
    bars.clear();
    match args.format {
        Format::Json => json(&record),
        Format::Table => {
            outln!("{}: {}", args.output.display(), describe(&record));
            outln!("{}", cost(&record.quality));
            Ok(())
        }
    }
}

/// What was done to a model, in a few words.
pub fn describe(record: &QuantizationRecord) -> String {
    let QuantizationRecord { method, bits, zero_points, matrices, .. } = record;
    let groups = match (record.group, record.along) {
        (None, _) => "rows".into(),
        (Some(group), Along::Input) => format!("groups of {group}"),
        (Some(group), Along::Output) => format!("groups of {group} outputs"),
    };
    let wide = match record.matrices_of_8_bits {
        wide if wide > 0 && *bits == 4 => format!(", {wide} of them to 8 bits in rows"),
        _ => String::new(),
    };
    format!(
        "{matrices} matrices by {method} to {bits} bits in {groups}{}{wide}, {:.2} bits per weight, {:.2} of the whole model{}",
        if *zero_points { " with zero points" } else { "" },
        record.bits_per_weight,
        record.bits_per_weight_of_model,
        calibrated(&record.calibration)
    )
}
