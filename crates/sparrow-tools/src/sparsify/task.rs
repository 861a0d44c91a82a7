//! What the stages of calibration share, and running the model over a text for them.

use std::sync::Arc;

use sparrow::internals::backend::Observer;
use sparrow::internals::record::{Evaluation, PredictorQuality};
use sparrow::{Cpu, KvOptions, Model, Result, Selector, Session, SessionOptions};

use super::options::SparsifyOptions;
use super::state::State;
use crate::eval::evaluate;
use crate::observe::{Overlap, Recall};

/// The model, the text and how to read it.
pub(super) struct Task<'a> {
    pub cpu: &'a Arc<Cpu>,
    pub window: usize,
    pub options: &'a SparsifyOptions,
    /// What training needs to go on where it was interrupted.
    pub training: State,
}

/// What a setting costs on a text.
pub(super) struct Measured {
    pub evaluation: Evaluation,
    /// Empty for selectors that do not select neurons.
    pub selection: Vec<PredictorQuality>,
    /// Likewise.
    pub overlap: Vec<f64>,
}

/// Measures what `selector` costs on `ids`; `truth` is the `|act(gate)|` above which a neuron is truly active, per layer.
///
/// # Errors
/// If weights cannot be read.
pub(super) fn measure(
    task: &Task,
    model: &Arc<Model>,
    selector: Selector,
    truth: &[f32],
    ids: &[u32],
    done: impl FnMut(usize),
) -> Result<Measured> {
    let (spec, options) =
        (&model.spec, SessionOptions { sequences: 1, capacity: task.window, kv: KvOptions::default() });
    let mut dense = Session::new(model.clone(), task.cpu.clone(), Selector::dense(), options)?;
    let mut sparse = Session::new(model.clone(), task.cpu.clone(), selector, options)?;
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
pub(super) fn observe(
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
