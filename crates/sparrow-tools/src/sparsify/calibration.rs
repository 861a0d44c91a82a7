//! What a selector needs to know of a model, found on a text: predictors, scores, magnitudes, and settings from them.

use std::sync::Arc;

use sparrow::internals::backend::{GateNeurons, InputNorms, Predictor, Scorer, Threshold, is_relu_family};
use sparrow::internals::select::{Calibrates, Found, Goal, InputThresholds, Method, Neurons, Scores};
use sparrow::{Error, Model, Result, Selector};

use super::options::{Progress, SparsifyOptions, Stage};
use super::task::{Task, observe};
use super::train;
use crate::calibrate::{
    BlockInfluence, InputCalibration, InputSamples, LayerSamples, NeuronSamples, ScoreCurve, TOKENS, Worth,
    closed_form, column_norms, expected_worth, means_left_out, thresholds_for_active, thresholds_for_recall,
};

/// Fraction of neurons that count as truly active where the activation has no exact zeros and nothing else was asked for.
const TRUE_ACTIVE: f64 = 0.6;

/// What one pass over the text gave.
pub(super) enum Observed {
    Neurons { samples: Vec<LayerSamples>, scores: Scores },
    Inputs(InputCalibration),
    Blocks(BlockInfluence),
}

impl Observed {
    pub fn new(task: &Task, model: &Arc<Model>, ids: &[u32], progress: &mut Progress) -> Result<Self> {
        let (layers, hidden) = (model.spec.num_layers, model.spec.hidden_size);
        let mut report = |done, all| progress(Stage::Observing, done, all);
        Ok(match task.options.selector.kind().calibrates() {
            Calibrates::Inputs => {
                let norms = column_norms(task.cpu, model).into();
                let mut samples = InputSamples::new(norms, TOKENS - TOKENS % task.window.min(TOKENS));
                observe(task, model, ids, &mut samples, &mut report)?;
                Observed::Inputs(samples.finish().ok_or_else(not_finite)?)
            }
            Calibrates::Blocks => {
                let mut influence = BlockInfluence::new(layers, hidden);
                observe(task, model, ids, &mut influence, &mut report)?;
                if !influence.is_finite() {
                    return Err(not_finite());
                }
                Observed::Blocks(influence)
            }
            Calibrates::Neurons(scores) => {
                let low_rank = scores == Scores::LowRank;
                let look_ahead = task.options.look_ahead;
                let mut samples = NeuronSamples::new(task.cpu, layers, hidden, ids.len(), low_rank, look_ahead);
                if is_weighted(scores, model) {
                    samples = samples.without_first_of(task.window);
                }
                observe(task, model, ids, &mut samples, &mut report)?;
                Observed::Neurons { samples: samples.finish()?, scores }
            }
            Calibrates::Nothing => unreachable!("options were checked"),
        })
    }
}

/// Whether exact gates are weighted: where they have no exact zeros, which cost nothing to leave out.
fn is_weighted(scores: Scores, model: &Model) -> bool {
    scores == Scores::Gate && !is_relu_family(model.spec.activation)
}

fn not_finite() -> Error {
    Error::option("text", "the model's activations are not finite on this text")
}

/// A selector's family of settings.
pub(super) enum Calibration {
    Neurons {
        samples: Vec<LayerSamples>,
        scorer: Scorer,
        /// What exact gates are multiplied with, per layer; empty where they are not.
        weights: Vec<Vec<f32>>,
        curves: Vec<ScoreCurve>,
        /// `|act(gate)|` above which a neuron is truly active, per layer.
        truth: Vec<f32>,
        relu: bool,
    },
    Inputs {
        calibration: InputCalibration,
        worth: Worth,
    },
    Blocks {
        influence: BlockInfluence,
        model: Arc<Model>,
    },
}

impl Calibration {
    pub fn new(task: &Task, model: &Arc<Model>, observed: Observed, progress: &mut Progress) -> Result<Self> {
        let layers = &model.weights.layers;
        let (samples, scores) = match observed {
            Observed::Neurons { samples, scores } => (samples, scores),
            Observed::Inputs(calibration) => {
                let report = |done, all| progress(Stage::Thresholding, done, all);
                let worth = Worth::measure(task.cpu, model, &calibration, task.window.min(TOKENS), report)?;
                return Ok(Calibration::Inputs { calibration, worth });
            }
            Observed::Blocks(influence) => return Ok(Calibration::Blocks { influence, model: model.clone() }),
        };
        let scorer = match scores {
            Scores::Gate => Scorer::Gate(None),
            Scores::Signs => {
                let signs = layers.iter().map(|layer| task.cpu.sign_bits(&layer.mlp.deciding().weight));
                Scorer::Signs(signs.collect())
            }
            Scores::LowRank => {
                let predictors = layers.iter().enumerate().map(|(l, layer)| {
                    progress(Stage::Predicting, l as u64, layers.len() as u64);
                    closed_form(layer.mlp.deciding(), &samples[l].moments(), task.options.rank)
                });
                Scorer::LowRank(predictors.collect::<Result<_>>()?)
            }
        };
        let relu = is_relu_family(model.spec.activation);
        // A rule that was named is one of plain gates.
        let weights = match is_weighted(scores, model) && task.options.selector.rule().is_none() {
            true => {
                samples.iter().enumerate().map(|(l, samples)| expected_worth(task.cpu, model, l, samples)).collect()
            }
            false => Vec::new(),
        };
        let (curves, truth) = (Vec::new(), Vec::new());
        let mut calibration = Calibration::Neurons { samples, scorer, weights, curves, truth, relu };
        let true_active = match task.options.goal {
            Some(Goal::Active(active)) => active,
            _ => TRUE_ACTIVE,
        };
        progress(Stage::Thresholding, 0, 1);
        calibration.score(task, model, true_active);
        if let (1.., Calibration::Neurons { samples, scorer: Scorer::LowRank(predictors), truth, .. }) =
            (task.options.epochs, &mut calibration)
            && let Some(trained) = train::train(task, model, samples, predictors, truth, progress)?
        {
            *predictors = trained.into();
            calibration.score(task, model, true_active);
        }
        Ok(calibration)
    }

    /// Scores the samples, a fraction `true_active` of neurons being truly active where nothing else says which are.
    fn score(&mut self, task: &Task, model: &Model, true_active: f64) {
        let Calibration::Neurons { samples, scorer, weights, curves, truth, .. } = self else { return };
        let score = |(l, samples)| {
            let weights = weights.get(l).map(Vec::as_slice);
            ScoreCurve::new(task.cpu, model, l, samples, scorer, weights, true_active)
        };
        (*curves, *truth) = samples.iter().enumerate().map(score).unzip();
    }

    /// As [`score`](Self::score), where that changes anything.
    pub fn rescore(&mut self, task: &Task, model: &Model, active: f64) {
        if let Calibration::Neurons { relu: false, .. } = self {
            self.score(task, model, active);
        }
    }

    /// The setting that keeps a fraction `active`.
    pub fn for_active(&self, options: &SparsifyOptions, active: f64) -> Method {
        let found = match self {
            Calibration::Neurons { curves, relu, .. } => {
                return self.neuron_method(options, thresholds_for_active(curves, *relu, active));
            }
            Calibration::Inputs { calibration, worth } => Found::Inputs(worth.thresholds(calibration, active)),
            Calibration::Blocks { influence, model } => Found::Blocks(influence.skipped(&model.weights.layers, active)),
        };
        options.selector.kind().method(found)
    }

    /// The setting that finds a fraction `recall` of the truly active neurons.
    ///
    /// # Panics
    /// If the selector does not select neurons.
    pub fn for_recall(&self, options: &SparsifyOptions, recall: f64) -> Method {
        let Calibration::Neurons { curves, .. } = self else { panic!("recall is of neurons") };
        self.neuron_method(options, thresholds_for_recall(curves, recall))
    }

    /// The setting with the same rule for every layer.
    ///
    /// # Panics
    /// If the selector does not select neurons.
    pub fn with_rule(&self, options: &SparsifyOptions, rule: Threshold) -> Method {
        let Calibration::Neurons { curves, .. } = self else { panic!("a rule is for neurons") };
        self.neuron_method(options, vec![rule; curves.len()])
    }

    fn neuron_method(&self, options: &SparsifyOptions, thresholds: Vec<Threshold>) -> Method {
        let SparsifyOptions { rank, look_ahead, epochs, .. } = *options;
        // Predictors say whether training was kept.
        let epochs = if self.predictors().unwrap_or_default().iter().any(|p| p.logits) { epochs } else { 0 };
        let weighted = matches!(self, Calibration::Neurons { weights, .. } if !weights.is_empty());
        options.selector.kind().method(Found::Neurons { thresholds, rank, look_ahead, epochs, weighted })
    }

    /// Of each layer, weights of its neurons and what stands for them where a setting leaves them out; none: neither.
    pub fn gate_neurons(&self, task: &Task, model: &Model, method: &Method) -> Option<Vec<[Vec<f32>; 2]>> {
        let Calibration::Neurons { samples, weights, .. } = self else { return None };
        let thresholds = method.record().neuron_thresholds().filter(|_| !weights.is_empty())?;
        let layer = |(l, (weights, &threshold)): (usize, (&Vec<f32>, &Threshold))| {
            let Threshold::Fixed(threshold) = threshold else { panic!("calibration gives values, found {threshold}") };
            [weights.clone(), means_left_out(task.cpu, model, l, &samples[l], weights, threshold)]
        };
        Some(weights.iter().zip(thresholds).enumerate().map(layer).collect())
    }

    /// What runs a setting.
    pub fn selector(&self, task: &Task, model: &Model, method: &Method) -> Selector {
        match (self, method) {
            (Calibration::Neurons { scorer, .. }, method) => {
                let thresholds = method.record().neuron_thresholds().unwrap_or_default().to_vec();
                let scorer = match self.gate_neurons(task, model, method) {
                    None => scorer.clone(),
                    Some(neurons) => {
                        let layers = neurons.into_iter().zip(&model.weights.layers);
                        Scorer::Gate(Some(layers.map(|(n, layer)| GateNeurons::new(task.cpu, &layer.mlp, n)).collect()))
                    }
                };
                Selector::Neurons(Neurons::above(scorer, thresholds, task.options.look_ahead))
            }
            (Calibration::Inputs { calibration, .. }, Method::Input(calibrated)) => {
                let fixed = |layer: &[f32; 7]| layer.map(Threshold::Fixed);
                let rules = calibrated.thresholds.iter().map(fixed).collect();
                Selector::input(InputThresholds { rules, norms: Some(calibration.norms.clone()) })
            }
            (_, Method::Skip(blocks)) => Selector::skip(blocks.clone()),
            _ => unreachable!("{method:?} is not what was calibrated"),
        }
    }

    /// One per layer, for `lowrank`.
    pub fn predictors(&self) -> Option<&[Predictor]> {
        match self {
            Calibration::Neurons { scorer: Scorer::LowRank(predictors), .. } => Some(predictors),
            _ => None,
        }
    }

    /// Norms of the weights' columns, for `input`.
    pub fn norms(&self) -> Option<&[InputNorms]> {
        match self {
            Calibration::Inputs { calibration, .. } => Some(&calibration.norms),
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
