//! From a dense model directory to a sparse one: calibrate, choose a setting, measure, write.

mod allocate;
mod calibration;
mod search;
mod train;
mod write;

use std::path::Path;
use std::sync::Arc;

use sparrow::internals::backend::Observer;
use sparrow::internals::checkpoint::{Checkpoint, Directory, fingerprint, pretty};
use sparrow::internals::record::{Evaluation, PredictorQuality, Quality, SidecarFile};
use sparrow::internals::select::{Calibrates, Method};
use sparrow::{
    Cpu, Error, KvOptions, Model, Placement, Result, Selector, SelectorSpec, Session, SessionOptions, Tokenizer,
};

use self::calibration::{Calibration, Observed};
pub use self::search::calibrated;
use crate::calibrate::ScoreCurve;
use crate::eval::evaluate;
use crate::observe::{Overlap, Recall};
use crate::text::Text;
pub use sparrow::internals::select::Goal;

/// What [`sparsify`] should make.
#[derive(Debug, Clone)]
pub struct SparsifyOptions {
    /// `gate`, `lowrank`, `sign`, `input` or `skip`; with a rule or a list of blocks nothing is calibrated.
    pub selector: SelectorSpec,
    /// Rank of low-rank predictors.
    pub rank: usize,
    /// Predictors read the attention's input, so that the selection is known one block ahead.
    pub look_ahead: bool,
    /// Passes of training over the calibration text, after the closed form; kept if it tells active neurons better apart.
    pub epochs: usize,
    /// What thresholds are calibrated for; `None`: what suits the selector.
    pub goal: Option<Goal>,
    /// Measure a range of active fractions, for a curve of quality against them.
    pub curve: bool,
    /// Tokens per calibration window.
    pub window: usize,
    /// Tokens of the text to use, held-out parts included.
    pub max_tokens: usize,
}

impl SparsifyOptions {
    /// The usual settings for a selector, with predictors of this rank.
    pub fn new(selector: SelectorSpec, rank: usize) -> Self {
        SparsifyOptions {
            selector,
            rank,
            look_ahead: false,
            epochs: 0,
            goal: None,
            curve: false,
            window: 256,
            max_tokens: 65_536,
        }
    }
}

/// A stage of the work, for progress bars.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Reading the text through the model.
    Observing,
    /// Computing predictors, by layer.
    Predicting,
    /// Training predictors, by layer and epoch.
    Training,
    /// Computing thresholds, by layer.
    Thresholding,
    /// Measuring settings on the part of the text kept for the search.
    Searching,
    /// Measuring quality on held-out text.
    Evaluating,
    /// Writing weights.
    Writing,
}

/// Called with a stage, what is done of it and what there is to do.
pub type Progress<'a> = dyn FnMut(Stage, u64, u64) + 'a;

/// What was made.
#[derive(Debug)]
pub struct Sparsified {
    /// The sidecar that was written.
    pub file: SidecarFile,
    /// Scores of every layer's neurons; empty for selectors of inputs or blocks.
    pub curves: Vec<ScoreCurve>,
}

/// The model, the text and how to read it.
struct Task<'a> {
    cpu: &'a Arc<Cpu>,
    window: usize,
    options: &'a SparsifyOptions,
    /// What training needs to go on where it was interrupted.
    training: train::State,
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
    let model = Model::load(dir, Placement::default())?;
    if model.sidecar.is_some() {
        return Err(Error::option(
            "model",
            format!("{} is already sparsified: start from the original", dir.display()),
        ));
    }
    search::check(options, &model.spec)?;
    // A search for a wanted quality reads as much as is held out, before it.
    let searching = options.curve || options.goal.is_some_and(search::is_searched);
    let parts = if searching { 2 } else { 1 };
    let text = Text::read(text, &Tokenizer::load(dir)?, options.max_tokens, options.window, &model.spec, parts)?;
    let window = text.window;
    let (seen, searched, held_out) = (text.seen(), text.searched(), text.held_out());

    let key = format!("{} {} {options:?}", fingerprint(&Checkpoint::open(dir)?), text.sha256);
    let task = Task { cpu, window, options, training: train::State::new(out, &key) };
    let model = Arc::new(model);
    let observed = Observed::new(&task, &model, seen, &mut progress)?;
    let mut model = Arc::into_inner(model).expect("observation is done with the model");
    match options.selector.kind().calibrates() {
        Calibrates::Inputs => model.weights_mut().make_input_major(&cpu.compute)?,
        Calibrates::Neurons(_) => model.weights_mut().make_neuron_major(&cpu.compute)?,
        Calibrates::Blocks | Calibrates::Nothing => {}
    }
    let model = Arc::new(model);
    let mut calibration = Calibration::new(&task, &model, observed, &mut progress)?;
    let chosen = search::choose(&task, &model, &mut calibration, searched, &mut progress)?;
    let held_out = measure(&task, &model, &calibration, &chosen.method, held_out, |done| {
        progress(Stage::Evaluating, done as u64, held_out.len() as u64);
    })?;

    directory.copy_companions(dir, SidecarFile::NAME)?;
    write::write_weights(&directory, dir, &model.spec.names, cpu, &mut progress)?;
    if let Some(predictors) = calibration.predictors() {
        write::write_predictors(&directory, predictors)?;
    }
    let file = SidecarFile {
        format_version: SidecarFile::VERSION,
        fingerprint: fingerprint(&Checkpoint::open(directory.path())?),
        method: chosen.method,
        true_active_above: calibration.truth().to_vec(),
        quality: Quality {
            text: text.held_out_name(),
            evaluation: held_out.evaluation,
            selection: held_out.selection,
            overlap: held_out.overlap,
        },
        calibration: text.calibration(seen.len()),
        search: chosen.trials,
    };
    directory.text(SidecarFile::NAME, &pretty(&file))?;
    directory.finish()?;
    task.training.remove();
    Ok(Sparsified { file, curves: calibration.into_curves() })
}

/// What a setting costs on a text.
struct Measured {
    evaluation: Evaluation,
    /// Empty for selectors that do not select neurons.
    selection: Vec<PredictorQuality>,
    /// Likewise.
    overlap: Vec<f64>,
}

fn measure(
    task: &Task,
    model: &Arc<Model>,
    calibration: &Calibration,
    method: &Method,
    ids: &[u32],
    done: impl FnMut(usize),
) -> Result<Measured> {
    let (spec, options) =
        (&model.spec, SessionOptions { sequences: 1, capacity: task.window, kv: KvOptions::default() });
    let mut dense = Session::new(model.clone(), task.cpu.clone(), Selector::dense(), options)?;
    let selector = calibration.selector(task.options, method);
    let mut sparse = Session::new(model.clone(), task.cpu.clone(), selector, options)?;
    let truth = calibration.truth();
    let observers = || {
        let recall = Recall::new(task.cpu, &model.weights.layers, spec.activation, truth);
        (recall, Overlap::new(spec.num_layers, spec.intermediate_size))
    };
    let mut observers = (!truth.is_empty()).then(observers);
    let evaluation = evaluate(&mut dense, &mut sparse, ids, task.window, &mut observers, done)?;
    let (selection, overlap) = observers.map_or_else(Default::default, |(r, o)| (r.per_layer(), o.per_layer()));
    Ok(Measured { evaluation, selection, overlap })
}

/// Runs the dense model over windows of `ids`.
fn observe(
    task: &Task,
    model: &Arc<Model>,
    ids: &[u32],
    observer: &mut dyn Observer,
    mut progress: impl FnMut(u64, u64),
) -> Result<()> {
    let options = SessionOptions { sequences: 1, capacity: task.window, kv: KvOptions::default() };
    let mut session = Session::new(model.clone(), task.cpu.clone(), Selector::dense(), options)?;
    for (w, window) in ids.chunks(task.window).enumerate() {
        session.truncate(0, 0)?;
        session.observe(0, window, observer)?;
        progress((w * task.window + window.len()) as u64, ids.len() as u64);
    }
    Ok(())
}
