//! What a selector needs to know of a model, found on a text: predictors, scores, magnitudes, and settings from them.

use std::sync::Arc;

use super::search::Goal;
use super::{Progress, SparsifyOptions, Stage, Task, allocate, observe, train};
use crate::backend::Cpu;
use crate::error::{Error, Result};
use crate::model::Model;
use crate::sparsity::calibrate::{
    BlockInfluence, InputCalibration, InputSamples, LayerSamples, NeuronSamples, Scorer, thresholds_for_active,
    thresholds_for_recall,
};
use crate::sparsity::{
    InputThresholds, Method, Predictor, Projection, ScoreCurve, Selector, SelectorSpec, SignBits, Threshold, deciding,
    is_relu_family,
};

/// Fraction of neurons that count as truly active where the activation has no exact zeros and nothing else was asked for.
const TRUE_ACTIVE: f64 = 0.6;

/// What one pass over the text gave.
pub(super) enum Observed {
    Neurons(Vec<LayerSamples>),
    Inputs(InputCalibration),
    Blocks(BlockInfluence),
}

impl Observed {
    pub fn new(task: &Task, model: &Arc<Model>, ids: &[u32], progress: &mut Progress) -> Result<Self> {
        let (layers, hidden) = (model.spec.num_layers, model.spec.hidden_size);
        let mut report = |done, all| progress(Stage::Observing, done, all);
        Ok(match task.options.selector {
            SelectorSpec::Input(_) => {
                let mut samples = InputSamples::new(layers, allocate::TOKENS.min(task.window));
                observe(task, model, ids, &mut samples, &mut report)?;
                Observed::Inputs(samples.finish().ok_or_else(not_finite)?)
            }
            SelectorSpec::Skip(_) => {
                let mut influence = BlockInfluence::new(layers, hidden);
                observe(task, model, ids, &mut influence, &mut report)?;
                if !influence.is_finite() {
                    return Err(not_finite());
                }
                Observed::Blocks(influence)
            }
            _ => {
                let low_rank = matches!(task.options.selector, SelectorSpec::LowRank(_));
                let look_ahead = task.options.look_ahead;
                let mut samples = NeuronSamples::new(task.cpu, layers, hidden, ids.len(), low_rank, look_ahead);
                observe(task, model, ids, &mut samples, &mut report)?;
                Observed::Neurons(samples.finish()?)
            }
        })
    }
}

fn not_finite() -> Error {
    Error::option("text", "the model's activations are not finite on this text")
}

/// A selector's family of settings.
pub(super) enum Calibration {
    Neurons {
        samples: Vec<LayerSamples>,
        /// Empty unless the selector is `lowrank`.
        predictors: Vec<Predictor>,
        curves: Vec<ScoreCurve>,
        /// `|act(gate)|` above which a neuron is truly active, per layer.
        truth: Vec<f32>,
        relu: bool,
    },
    Inputs {
        calibration: InputCalibration,
        paths: Vec<allocate::Path>,
    },
    Blocks {
        influence: BlockInfluence,
        model: Arc<Model>,
    },
}

impl Calibration {
    pub fn new(task: &Task, model: &Arc<Model>, observed: Observed, progress: &mut Progress) -> Result<Self> {
        let layers = &model.weights.layers;
        let samples = match observed {
            Observed::Neurons(samples) => samples,
            Observed::Inputs(calibration) => {
                let paths = (0..layers.len()).map(|l| {
                    progress(Stage::Thresholding, l as u64, layers.len() as u64);
                    allocate::path(task.cpu, model, l, &calibration)
                });
                let paths = paths.collect::<Result<_>>()?;
                return Ok(Calibration::Inputs { calibration, paths });
            }
            Observed::Blocks(influence) => return Ok(Calibration::Blocks { influence, model: model.clone() }),
        };
        let mut predictors = Vec::new();
        if let SelectorSpec::LowRank(_) = task.options.selector {
            for (l, layer) in layers.iter().enumerate() {
                progress(Stage::Predicting, l as u64, layers.len() as u64);
                predictors.push(Predictor::closed_form(deciding(layer), &samples[l].moments(), task.options.rank)?);
            }
        }
        let relu = is_relu_family(model.spec.activation);
        let (curves, truth) = (Vec::new(), Vec::new());
        let mut calibration = Calibration::Neurons { samples, predictors, curves, truth, relu };
        let true_active = match task.options.goal {
            Some(Goal::Active(active)) => active,
            _ => TRUE_ACTIVE,
        };
        progress(Stage::Thresholding, 0, 1);
        calibration.score(task, model, true_active);
        if task.options.epochs > 0 {
            let Calibration::Neurons { samples, predictors, truth, .. } = &mut calibration else { unreachable!() };
            if let Some(trained) = train::train(task, model, samples, predictors, truth, progress)? {
                *predictors = trained;
                calibration.score(task, model, true_active);
            }
        }
        Ok(calibration)
    }

    /// Scores the samples, a fraction `true_active` of neurons being truly active where nothing else says which are.
    fn score(&mut self, task: &Task, model: &Model, true_active: f64) {
        let Calibration::Neurons { samples, predictors, curves, truth, .. } = self else { return };
        (*curves, *truth) = model
            .weights
            .layers
            .iter()
            .enumerate()
            .map(|(l, layer)| {
                let scorer = match task.options.selector {
                    SelectorSpec::LowRank(_) => Scorer::LowRank(&predictors[l]),
                    SelectorSpec::Sign(_) => Scorer::Sign(SignBits::new(&task.cpu.compute, &deciding(layer).weight)),
                    _ => Scorer::Gate,
                };
                ScoreCurve::new(task.cpu, layer, model.spec.activation, &samples[l], &scorer, true_active)
            })
            .unzip();
    }

    /// As [`score`](Self::score), where that changes anything.
    pub fn rescore(&mut self, task: &Task, model: &Model, active: f64) {
        if let Calibration::Neurons { relu: false, .. } = self {
            self.score(task, model, active);
        }
    }

    /// The setting that keeps a fraction `active`.
    pub fn for_active(&self, options: &SparsifyOptions, active: f64) -> Method {
        match self {
            Calibration::Neurons { curves, predictors, relu, .. } => {
                neuron_method(options, predictors, thresholds_for_active(curves, *relu, active))
            }
            Calibration::Inputs { calibration, paths } => {
                let layer = |(l, path): (usize, &allocate::Path)| {
                    let sparsity = path.at(1.0 - active);
                    Projection::ALL.map(|p| calibration.threshold(l, p, sparsity[p as usize]))
                };
                Method::Input { thresholds: paths.iter().enumerate().map(layer).collect() }
            }
            Calibration::Blocks { influence, model } => Method::Skip(influence.skipped(&model.weights.layers, active)),
        }
    }

    /// The setting that finds a fraction `recall` of the truly active neurons.
    ///
    /// # Panics
    /// If the selector does not select neurons.
    pub fn for_recall(&self, options: &SparsifyOptions, recall: f64) -> Method {
        let Calibration::Neurons { curves, predictors, .. } = self else { panic!("recall is of neurons") };
        neuron_method(options, predictors, thresholds_for_recall(curves, recall))
    }

    /// The setting with the same rule for every layer.
    ///
    /// # Panics
    /// If the selector does not select neurons.
    pub fn with_rule(&self, options: &SparsifyOptions, rule: Threshold) -> Method {
        let Calibration::Neurons { curves, predictors, .. } = self else { panic!("a rule is for neurons") };
        neuron_method(options, predictors, vec![rule; curves.len()])
    }

    /// What runs a setting.
    pub fn selector(&self, cpu: &Cpu, model: &Model, method: &Method) -> Selector {
        match method.clone() {
            Method::Gate { thresholds } => Selector::gate(thresholds),
            Method::LowRank { look_ahead, thresholds, .. } => {
                Selector::low_rank(self.predictors().unwrap_or_default().to_vec(), look_ahead, thresholds)
            }
            Method::Sign { thresholds } => {
                let bits = |layer| SignBits::new(&cpu.compute, &deciding(layer).weight);
                Selector::sign(model.weights.layers.iter().map(bits).collect(), thresholds)
            }
            Method::Input { thresholds } => {
                Selector::input(InputThresholds(thresholds.iter().map(|layer| layer.map(Threshold::Fixed)).collect()))
            }
            Method::Skip(blocks) => Selector::skip(blocks),
        }
    }

    /// One per layer, for `lowrank`.
    pub fn predictors(&self) -> Option<&[Predictor]> {
        match self {
            Calibration::Neurons { predictors, .. } if !predictors.is_empty() => Some(predictors),
            _ => None,
        }
    }

    /// `|act(gate)|` above which a neuron is truly active, per layer; empty for selectors of inputs or blocks.
    pub fn truth(&self) -> &[f32] {
        match self {
            Calibration::Neurons { truth, .. } => truth,
            _ => &[],
        }
    }

    /// Scores per layer; empty for selectors of inputs or blocks.
    pub fn into_curves(self) -> Vec<ScoreCurve> {
        match self {
            Calibration::Neurons { curves, .. } => curves,
            _ => Vec::new(),
        }
    }
}

/// `predictors` say whether training was kept.
fn neuron_method(options: &SparsifyOptions, predictors: &[Predictor], thresholds: Vec<Threshold>) -> Method {
    let SparsifyOptions { rank, look_ahead, epochs, .. } = *options;
    let epochs = if predictors.iter().any(|p| p.logits) { epochs } else { 0 };
    match options.selector {
        SelectorSpec::LowRank(_) => Method::LowRank { rank, look_ahead, epochs, thresholds },
        SelectorSpec::Sign(_) => Method::Sign { thresholds },
        _ => Method::Gate { thresholds },
    }
}
