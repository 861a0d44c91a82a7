//! From a model directory to one with weights of 4 or 8 bits: layer by layer, in order, each calibrated on what the quantised layers
//! before it make of the text.

mod awq;
mod fold;
mod grid;
mod layer;
mod options;
mod packed;
mod record;
mod refine;
mod round;
#[cfg(test)]
mod tests;
mod widths;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use sparrow::internals::checkpoint::config::{PackedLayers, describe_input_major, describe_packed};
use sparrow::internals::checkpoint::{Checkpoint, Directory, ModelFiles, fingerprint, pretty};
use sparrow::internals::record::SidecarFile;
use sparrow::internals::spec::ModelSpec;
use sparrow::internals::weights::INPUT_MAJOR;
use sparrow::{Cpu, Error, Model, Placement, Result, Tokenizer};

use self::layer::Layer;
pub use self::options::{Along, Method, QuantizeOptions};
pub use self::record::QuantizationRecord;
use crate::layerwise::{Choice, Journal, Kept, LayerMatrix, Shards, Walk, choose};
pub use crate::layerwise::{MeasuredQuality, Progress, Stage};
use crate::text::{Reading, Text};

/// Quantises the model in `dir`, calibrated on the text file `text`, and writes it as the new directory `out`, in the format
/// `pack-quantized` of compressed-tensors. A run that is interrupted leaves `out` with `.quantizing` added, and goes on from there when
/// called again; the result is the same, byte for byte.
///
/// Memory: the residual stream of the text, 4 · hidden bytes per token; the layer that is being quantised, in f32; but for RTN also 4·n²
/// bytes for each input of `n` values, and three times that while the largest is factored; to choose widths, the predictions of 256
/// tokens, twice.
///
/// # Errors
/// If the model or text cannot be read, weights or activations are not finite, the text is too short, an option is out of range,
/// or `out` exists or cannot be written.
pub fn quantize(
    dir: &Path,
    out: &Path,
    text: &Path,
    options: &QuantizeOptions,
    cpu: &Arc<Cpu>,
    mut progress: impl FnMut(Stage, u64, u64),
) -> Result<QuantizationRecord> {
    options.check()?;
    let files = ModelFiles::open(dir)?;
    let mut model = Model::read(&files, Placement::default(), |_, _| ())?;
    if model.sidecar.is_some() || model.weights.is_neuron_major() {
        let message = format!(
            "{} is laid out for sparse execution, whose rows of single neurons compressed-tensors has no words for: quantise the \
             original",
            dir.display()
        );
        return Err(Error::option("model", message));
    }
    let source = files.checkpoint()?;
    let mut config = files.json("config.json")?.unwrap_or_default();
    if config.get("quantization_config").is_some_and(|there| !there.is_null()) {
        let message = format!("{} is quantised or packed already: quantise the original", dir.display());
        return Err(Error::option("model", message));
    }
    let chosen = chosen(&model, &source, options)?;
    options.average_bits.map_or(Ok(()), |average| widths::check(&chosen, options, average))?;
    let QuantizeOptions { max_tokens, window, bos, .. } = *options;
    let text =
        Text::read(text, &Tokenizer::read(&files)?, &Reading { max_tokens, window, bos, parts: 1 }, &model.spec)?;
    let source_fingerprint = fingerprint(&source);
    let directory = Directory::resume(out, ".quantizing")?;
    let mut journal = Journal::open(&directory, "quantising", &source_fingerprint, &text.sha256, options)?;
    let bits = match (options.average_bits, &journal.matrices) {
        (None, _) => chosen.iter().map(|matrices| vec![options.bits; matrices.len()]).collect(),
        (Some(_), Some(bits)) => bits.clone(),
        (Some(average), None) => {
            let of = (&source, chosen.as_slice());
            let bits = widths::allocate(cpu, &mut model, of, (options, average), &text, &mut progress)?;
            journal.allocate(&directory, bits)?
        }
    };

    let spec = model.spec.clone();
    let shards = Shards { directory: &directory, source: &source, names: &spec.names, layers: spec.num_layers };
    let kept = if options.method == Method::Rtn { Kept::Nothing } else { Kept::Products };
    let walk = Walk { cpu, chosen: &chosen, text: &text, shards: &shards, kept };
    let quality = walk.run(&mut model, &mut progress, |index, inputs| {
        let (matrices, bits) = (&chosen[index], &bits[index]);
        Layer { cpu, spec: &spec, source: &source, index, matrices, bits, options }.quantize(inputs)
    })?;
    files.copy_companions(&directory, SidecarFile::NAME)?;
    config["quantization_config"] = match options.along {
        Along::Input => describe_packed(&left_out(&spec, &source, &chosen), &stored(&chosen, &bits, options)),
        Along::Output => describe_input_major(),
    };
    directory.text("config.json", &pretty(&config))?;
    let sizes = Sizes::of(&Checkpoint::open(directory.path())?, &chosen, options.along);
    let record = QuantizationRecord {
        format_version: QuantizationRecord::VERSION,
        method: options.method,
        bits: options.bits,
        average_bits: options.average_bits,
        group: options.group,
        along: options.along,
        zero_points: options.zero_points,
        include: options.include.clone(),
        exclude: options.exclude.clone(),
        source: source_fingerprint,
        calibration: text.calibration(kept != Kept::Nothing),
        matrices: chosen.iter().flatten().count(),
        matrices_of_8_bits: bits.iter().flatten().filter(|&&bits| bits == 8).count(),
        bits_per_weight: sizes.quantized_bits / sizes.quantized,
        bits_per_weight_of_model: sizes.bits / spec.parameters() as f64,
        quality,
    };
    directory.text(QuantizationRecord::NAME, &pretty(&record))?;
    journal.remove(&directory)?;
    directory.finish()?;
    Ok(record)
}

/// The matrices to quantise, by layer.
fn chosen(model: &Model, source: &Checkpoint, options: &QuantizeOptions) -> Result<Vec<Vec<LayerMatrix>>> {
    let QuantizeOptions { include, exclude, along, .. } = options;
    let choice = Choice { include, exclude, verb: "quantise", mend: "quantise the original" };
    let chosen = choose(&model.spec, source, &choice)?;
    let side = |matrix: &LayerMatrix| match along {
        Along::Input => matrix.cols,
        Along::Output => matrix.rows,
    };
    if let Some(group) = options.group
        && let Some(t) = chosen.iter().flatten().find(|t| !side(t).is_multiple_of(group))
    {
        let (name, side) = (&t.name, side(t));
        let message = format!("{group} does not divide the {side} {along}s of {name}: exclude it or use another");
        return Err(Error::option("group", message));
    }
    let fused = [model.spec.names.fused_qkv, model.spec.names.fused_gate_up];
    let is_fused = |t: &&LayerMatrix| fused.iter().any(|name| t.name.ends_with(&format!(".{name}.weight")));
    if *along == Along::Output
        && let Some(t) = chosen.iter().flatten().find(is_fused)
    {
        let message = format!("output needs a matrix for each projection, and {} holds several: use input", t.name);
        return Err(Error::option("along", message));
    }
    Ok(chosen)
}

/// The linear layers that are not quantised, by the names of their modules.
fn left_out(spec: &ModelSpec, source: &Checkpoint, chosen: &[Vec<LayerMatrix>]) -> Vec<String> {
    let is_chosen = |name: &str| chosen.iter().flatten().any(|matrix| matrix.name == name);
    let of_layers = source.tensors().filter(|info| info.shape.len() == 2 && spec.names.is_of_layer(&info.name));
    let layers = of_layers.filter(|info| !is_chosen(&info.name));
    let modules = layers.filter_map(|info| info.name.strip_suffix(".weight").map(str::to_owned));
    std::iter::once(spec.names.head.to_owned()).chain(modules).collect()
}

/// How the linear layers are stored that are quantised.
fn stored(chosen: &[Vec<LayerMatrix>], bits: &[Vec<u32>], options: &QuantizeOptions) -> Vec<PackedLayers> {
    let widths: BTreeSet<u32> = bits.iter().flatten().copied().collect();
    let mixed = widths.len() > 1;
    let layers = widths.into_iter().map(|width| {
        let matrices = chosen.iter().flatten().zip(bits.iter().flatten()).filter(|&(_, &bits)| bits == width);
        let modules =
            matrices.map(|(matrix, _)| matrix.name.strip_suffix(".weight").unwrap_or(&matrix.name).to_owned());
        PackedLayers {
            // No engine has to decide whether a class or a name comes first.
            modules: if mixed { modules.collect() } else { vec!["Linear".to_owned()] },
            bits: width,
            group: options.group.filter(|_| width == 4),
            zero_points: options.zero_points && width == 4,
        }
    });
    layers.collect()
}

/// What a written model takes.
struct Sizes {
    /// Weights that were quantised.
    quantized: f64,
    /// Their bits.
    quantized_bits: f64,
    /// Bits of all tensors.
    bits: f64,
}

impl Sizes {
    fn of(written: &Checkpoint, chosen: &[Vec<LayerMatrix>], along: Along) -> Self {
        let mut sizes = Sizes { quantized: 0.0, quantized_bits: 0.0, bits: 0.0 };
        sizes.bits = written.tensors().map(|info| info.bytes as f64 * 8.0).sum();
        for matrix in chosen.iter().flatten() {
            let layer = matrix.name.strip_suffix(".weight").unwrap_or(&matrix.name);
            let layer = match along {
                Along::Input => layer.to_owned(),
                Along::Output => format!("{layer}.{INPUT_MAJOR}"),
            };
            let parts = ["weight_packed", "weight_scale", "weight_zero_point"];
            let stored = parts.iter().filter_map(|part| written.info(&format!("{layer}.{part}")));
            sizes.quantized += (matrix.rows * matrix.cols) as f64;
            sizes.quantized_bits += stored.map(|info| info.bytes as f64 * 8.0).sum::<f64>();
        }
        sizes
    }
}
