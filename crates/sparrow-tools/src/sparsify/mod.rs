//! From a dense model directory to a sparse one: calibrate, choose a setting, measure, write.

mod adamw;
mod calibration;
mod options;
mod search;
mod state;
mod task;
mod train;
mod write;

use std::path::Path;
use std::sync::Arc;

use sparrow::internals::checkpoint::{Checkpoint, Directory, ModelFiles, fingerprint, pretty};
use sparrow::internals::record::{Quality, SidecarFile};
pub use sparrow::internals::select::Goal;
use sparrow::internals::select::{Calibrates, Method};
use sparrow::{Cpu, Error, Model, Placement, Result, Tokenizer};

use self::calibration::{Calibration, Observed};
pub use self::options::{Progress, SparsifyOptions, Stage};
pub use self::search::calibrated;
use self::state::State;
use self::task::{Task, measure};
pub(crate) use self::write::write_weights;
use crate::calibrate::ScoreCurve;
use crate::text::{Reading, Text};

/// What was made.
#[derive(Debug)]
pub struct Sparsified {
    /// The sidecar that was written.
    pub file: SidecarFile,
    /// Scores of every layer's neurons; empty for selectors of inputs or blocks.
    pub curves: Vec<ScoreCurve>,
    /// What keeps each of [`SparsifyOptions::settings`].
    pub settings: Vec<Method>,
}

/// Calibrates the model in `dir` on the text file `text` and writes it, with its sidecar, as the new directory `out`.
/// Training that is interrupted leaves `out` with `.training` added, and goes on from there when called again.
///
/// # Errors
/// If the model or text cannot be read, the text is too short, an option is out of range, or `out` exists or cannot be
/// written. Nothing is left behind on an error, but the state of training.
pub fn sparsify(
    dir: &Path,
    out: &Path,
    text: &Path,
    options: &SparsifyOptions,
    cpu: &Arc<Cpu>,
    mut progress: impl FnMut(Stage, u64, u64),
) -> Result<Sparsified> {
    let directory = Directory::create(out)?;
    let files = ModelFiles::open(dir)?;
    let model = Model::read(&files, Placement::default(), |_, _| ())?;
    if model.sidecar.is_some() {
        return Err(Error::option(
            "model",
            format!("{} is already sparsified: start from the original", dir.display()),
        ));
    }
    // A copy that can be gathered is made when a model is loaded; written, it would be a checkpoint that no one else reads.
    let dtype = model.weights.dtype();
    let as_it_is = match options.selector.kind().calibrates() {
        Calibrates::Blocks => true,
        Calibrates::Inputs => model.weights.is_input_major(),
        Calibrates::Neurons(_) | Calibrates::Nothing => false,
    };
    if dtype.is_quantized() && !as_it_is {
        let message = format!(
            "{} is quantised to {dtype}: `sparrow sparsify` the original and quantise when loading (--dtype), or quantise it with \
             `sparrow quantize --along output` for --selector input",
            dir.display()
        );
        return Err(Error::option("model", message));
    }
    search::check(options, &model.spec)?;
    // A search for a wanted quality reads as much as is held out, before it.
    let searching = options.curve || !options.settings.is_empty() || options.goal.is_some_and(search::is_searched);
    let parts = if searching { 2 } else { 1 };
    let SparsifyOptions { max_tokens, window, bos, .. } = *options;
    let text = Text::read(text, &Tokenizer::read(&files)?, &Reading { max_tokens, window, bos, parts }, &model.spec)?;
    let window = text.window;
    let (seen, searched, held_out) = (text.seen(), text.searched(), text.held_out());

    let key = format!("{} {} {options:?}", fingerprint(&files.checkpoint()?), text.sha256);
    let task = Task { cpu, window, options, training: State::new(out, &key) };
    let model = Arc::new(model);
    let observed = Observed::new(&task, &model, seen, &mut progress)?;
    let mut model = Arc::into_inner(model).expect("observation is done with the model");
    let transposing = |done, total| progress(Stage::Transposing, done, total);
    match options.selector.kind().calibrates() {
        Calibrates::Inputs => model.weights_mut().make_input_major(&cpu.compute, transposing)?,
        Calibrates::Neurons(_) => model.weights_mut().make_neuron_major(&cpu.compute, transposing)?,
        Calibrates::Blocks | Calibrates::Nothing => {}
    }
    let model = Arc::new(model);
    let mut calibration = Calibration::new(&task, &model, observed, &mut progress)?;
    let chosen = search::choose(&task, &model, &mut calibration, searched, &mut progress)?;
    let held_out = measure(
        &task,
        &model,
        calibration.selector(&task, &model, &chosen.method),
        calibration.truth(),
        held_out,
        |done| {
            progress(Stage::Evaluating, done as u64, held_out.len() as u64);
        },
    )?;

    files.copy_companions(&directory, SidecarFile::NAME)?;
    write::write_weights(&directory, &files.checkpoint()?, Some(&model.spec.names), cpu, &mut progress)?;
    if let Some(predictors) = calibration.predictors() {
        write::write_predictors(&directory, predictors)?;
    }
    if let Some(norms) = calibration.norms() {
        write::write_norms(&directory, norms)?;
    }
    if let Some(neurons) = calibration.gate_neurons(&task, &model, &chosen.method) {
        write::write_gate_neurons(&directory, &neurons)?;
    }
    let file = SidecarFile {
        format_version: SidecarFile::VERSION,
        fingerprint: fingerprint(&Checkpoint::open(directory.path())?),
        method: Some(chosen.method),
        dtype: None,
        true_active_above: calibration.truth().to_vec(),
        quality: Quality {
            text: text.held_out_name(),
            evaluation: held_out.evaluation,
            selection: held_out.selection,
            overlap: held_out.overlap,
        },
        calibration: text.calibration(true),
        search: chosen.trials,
    };
    directory.text(SidecarFile::NAME, &pretty(&file))?;
    directory.finish()?;
    task.training.remove();
    let settings = options.settings.iter().map(|&active| calibration.for_active(options, active)).collect();
    Ok(Sparsified { file, curves: calibration.into_curves(), settings })
}
