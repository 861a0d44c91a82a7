//! From a model directory to one with zeros among its weights: layer by layer, in order, each calibrated on what the pruned
//! layers before it make of the text.

mod allocate;
mod layer;
mod measure;
mod options;
mod record;
mod refit;
mod score;
mod sparsegpt;
mod spread;
#[cfg(test)]
mod tests;

use std::path::Path;
use std::sync::Arc;

use sparrow::internals::checkpoint::{Checkpoint, Directory, ModelFiles, fingerprint, pretty};
use sparrow::internals::record::SidecarFile;
use sparrow::{Cpu, Error, Model, Placement, Result, Tokenizer};

pub use self::options::{Allocation, Method, Pattern, PruneOptions, Target};
pub use self::record::{LayerRecord, PruningRecord};
use crate::layerwise::{Choice, Journal, Kept, LayerMatrix, Shards, Walk, choose};
pub use crate::layerwise::{MeasuredQuality, Progress, Stage};
use crate::text::{Reading, Text};

/// Prunes the model in `dir`, calibrated on the text file `text`, and writes it as the new directory `out`: the same tensors in
/// the same types, with zeros. A run that is interrupted leaves `out` with `.pruning` added, and goes on from there when called
/// again; the result is the same, byte for byte.
///
/// Memory: the residual stream of the text, 4 · hidden bytes per token; the layer that is being pruned, twice; for SparseGPT
/// also 4·n² bytes for each input of `n` values, and four times that while the largest is factored; to measure
/// what errors are worth, the layers once more.
///
/// # Errors
/// If the model or text cannot be read, weights or activations are not finite, the text is too short, an option is out of range,
/// or `out` exists or cannot be written.
pub fn prune(
    dir: &Path,
    out: &Path,
    text: &Path,
    options: &PruneOptions,
    cpu: &Arc<Cpu>,
    mut progress: impl FnMut(Stage, u64, u64),
) -> Result<PruningRecord> {
    options.check()?;
    let files = ModelFiles::open(dir)?;
    let mut model = Model::read(&files, Placement::default(), |_, _| ())?;
    if model.sidecar.is_some() || model.weights.is_neuron_major() {
        let message = format!(
            "{} is laid out for sparse execution: prune the original, then run `sparrow sparsify` on the result",
            dir.display()
        );
        return Err(Error::option("model", message));
    }
    let source = files.checkpoint()?;
    let chosen = chosen(&model, &source, options)?;
    let PruneOptions { max_tokens, window, bos, .. } = *options;
    let text =
        Text::read(text, &Tokenizer::read(&files)?, &Reading { max_tokens, window, bos, parts: 1 }, &model.spec)?;
    let source_fingerprint = fingerprint(&source);
    let directory = Directory::resume(out, ".pruning")?;
    let mut journal = Journal::open(&directory, "pruning", &source_fingerprint, &text.sha256, options)?;
    let targets = match journal.matrices.clone() {
        Some(targets) => targets,
        None => {
            let targets = spread::allocate(cpu, (&files, &model), (&source, &chosen), options, &text, &mut progress)?;
            journal.allocate(&directory, targets)?
        }
    };
    let names = model.spec.names.clone();
    let shards = Shards { directory: &directory, source: &source, names: &names, layers: model.spec.num_layers };
    let kept = match options.method {
        Method::Magnitude => Kept::Nothing,
        Method::Wanda => Kept::Squares,
        Method::SparseGpt => Kept::Products,
    };
    let walk = Walk { cpu, chosen: &chosen, text: &text, shards: &shards, kept };
    let rule = (options.method, options.target);
    let quality = walk.run(&mut model, &mut progress, |l, inputs| {
        layer::prune(cpu, &source, l, &chosen[l], inputs, rule, &targets[l])
    })?;
    let (sparsity, layers) = measure::measure(&Checkpoint::open(directory.path())?, &chosen, &targets)?;
    files.copy_companions(&directory, SidecarFile::NAME)?;
    let record = PruningRecord {
        format_version: PruningRecord::VERSION,
        method: options.method,
        target: options.target,
        allocation: options.allocation,
        include: options.include.clone(),
        exclude: options.exclude.clone(),
        source: source_fingerprint,
        calibration: text.calibration(options.calibrates()),
        sparsity,
        layers,
        quality,
    };
    directory.text(PruningRecord::NAME, &pretty(&record))?;
    journal.remove(&directory)?;
    directory.finish()?;
    Ok(record)
}

/// The matrices to prune, by layer.
fn chosen(model: &Model, source: &Checkpoint, options: &PruneOptions) -> Result<Vec<Vec<LayerMatrix>>> {
    let PruneOptions { include, exclude, .. } = options;
    let mend = "prune the original, then pack the result";
    let chosen = choose(&model.spec, source, &Choice { include, exclude, verb: "prune", mend })?;
    if let Target::Pattern(pattern) = options.target
        && let Some(t) = chosen.iter().flatten().find(|t| !t.cols.is_multiple_of(pattern.of))
    {
        let (name, cols) = (&t.name, t.cols);
        let message = format!("{pattern} does not divide the {cols} inputs of {name}: exclude it or use --sparsity");
        return Err(Error::option("pattern", message));
    }
    Ok(chosen)
}
