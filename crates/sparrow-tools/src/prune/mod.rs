//! From a model directory to one with zeros among its weights: layer by layer, in order, each calibrated on what the pruned
//! layers before it make of the text.

mod allocate;
mod inputs;
mod journal;
mod layer;
mod options;
mod pass;
mod record;
mod score;
mod sparsegpt;
mod stage;
mod tensors;

#[cfg(test)]
mod tests;
mod write;

use std::path::Path;
use std::sync::Arc;

use sparrow::internals::checkpoint::{Checkpoint, Directory, ModelFiles, fingerprint, pretty};
use sparrow::internals::record::SidecarFile;
use sparrow::{Cpu, Error, Model, Placement, Result, Tokenizer};

use self::journal::Journal;
pub use self::options::{Allocation, Method, Pattern, PruneOptions, Target};
use self::pass::Pass;
pub use self::record::{LayerRecord, PruningQuality, PruningRecord};
pub use self::stage::{Progress, Stage};
use self::write::{Shards, measure};
use crate::text::{Reading, Text};

/// Prunes the model in `dir`, calibrated on the text file `text`, and writes it as the new directory `out`: the same tensors in
/// the same types, with zeros. A run that is interrupted leaves `out` with `.pruning` added, and goes on from there when called
/// again; the result is the same, byte for byte.
///
/// Memory: the residual stream of the text, 4 · hidden bytes per token; the layer that is being pruned, twice; for SparseGPT
/// also 4·n² bytes for each input of `n` values, and three times that while the largest is factored.
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
    let chosen = tensors::choose(&model.spec, &source, options)?;
    let PruneOptions { max_tokens, window, bos, .. } = *options;
    let text =
        Text::read(text, &Tokenizer::read(&files)?, &Reading { max_tokens, window, bos, parts: 1 }, &model.spec)?;
    let source_fingerprint = fingerprint(&source);
    let directory = Directory::resume(out, ".pruning")?;
    let mut journal = Journal::open(&directory, &source_fingerprint, &text.sha256, options)?;

    let pass = Pass { cpu, source: &source, chosen: &chosen, options, text: &text };
    let targets = match journal.layers.clone() {
        Some(targets) => targets,
        None => journal.allocate(&directory, pass.allocate(&model, &mut progress)?)?,
    };
    let names = model.spec.names.clone();
    let shards = Shards { directory: &directory, source: &source, names: &names, layers: model.spec.num_layers };
    let evaluation = pass.prune(&mut model, &shards, &targets, &mut progress)?;
    shards.write_rest()?;
    let (sparsity, layers) = measure(&Checkpoint::open(directory.path())?, &chosen, &targets)?;
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
        quality: PruningQuality { text: text.held_out_name(), evaluation },
    };
    directory.text(PruningRecord::NAME, &pretty(&record))?;
    journal.remove(&directory)?;
    directory.finish()?;
    Ok(record)
}
