//! Training of low-rank predictors to tell active from inactive neurons: AdamW (arXiv 1711.05101) with warm-up and decay on
//! a class-weighted logistic loss, layer by layer; the epoch with the best F1 on held-back tokens is kept (Deja Vu,
//! arXiv 2310.17157).

mod logistic;

use std::sync::Arc;

use sparrow::internals::backend::Predictor;
use sparrow::{Model, Result};

use self::logistic::{Examples, Shape};
use super::adamw::AdamW;
use super::options::{Progress, Stage};
use super::state::Progressed;
use super::task::Task;
use crate::calibrate::LayerSamples;

/// Share of the sampled tokens, at the end, that F1 is measured on.
const VALIDATION: f64 = 0.1;

/// Tokens of one step.
const BATCH: usize = 256;

/// Trains `predictors`, one per layer, from their closed form on; `truth` is the `|act(gate)|` above which a neuron is active.
/// Returns none if the closed form has the better F1, averaged over layers.
///
/// # Errors
/// If the saved state of an interrupted run cannot be read or is of another one, or cannot be written.
pub(super) fn train(
    task: &Task,
    model: &Arc<Model>,
    samples: &[LayerSamples],
    predictors: &[Predictor],
    truth: &[f32],
    progress: &mut Progress,
) -> Result<Option<Vec<Predictor>>> {
    let epochs = task.options.epochs;
    let total = (predictors.len() * epochs) as u64;
    task.training.begin()?;
    let mut trained = Vec::with_capacity(predictors.len());
    let mut gain = 0.0;
    for (l, predictor) in predictors.iter().enumerate() {
        let gate = model.weights.layers[l].mlp.deciding();
        let examples = Examples::new(task.cpu, gate, model.spec.activation, &samples[l], truth[l]);
        let (learn, check) = examples.split(VALIDATION);
        let shape = Shape { rank: predictor.rank(), inputs: predictor.a.cols(), neurons: predictor.b.rows() };
        let mut at = match task.training.load(l, shape.parameters())? {
            Some(at) => at,
            None => {
                let start = examples.scaled(&shape, predictor, &learn);
                let best_f1 = examples.f1(&shape, &start, &check);
                Progressed { epochs: 0, optimiser: AdamW::new(start.clone()), best: start, best_f1 }
            }
        };
        let steps = learn.len().div_ceil(BATCH) * epochs;
        while at.epochs < epochs {
            progress(Stage::Training, (l * epochs + at.epochs) as u64, total);
            let order = examples.shuffled(&learn, (l * epochs + at.epochs) as u64);
            for batch in order.chunks(BATCH) {
                let gradient = examples.gradient(&shape, at.optimiser.parameters(), batch);
                at.optimiser.step(&gradient, steps);
            }
            at.epochs += 1;
            let f1 = examples.f1(&shape, at.optimiser.parameters(), &check);
            if f1 > at.best_f1 {
                (at.best_f1, at.best) = (f1, at.optimiser.parameters().to_vec());
            }
            task.training.save(l, &at)?;
        }
        gain += at.best_f1 - examples.closed_form_f1(task.cpu, predictor, model.spec.activation, &check);
        trained.push(shape.predictor(&at.best)?);
    }
    Ok((gain >= 0.0).then_some(trained))
}
