//! What calibration is asked for, and what it tells as it goes.

use sparrow::SelectorSpec;
use sparrow::internals::select::Goal;

/// What [`sparsify`](super::sparsify) should make.
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
    /// Also find what keeps each of these fractions, and leave a tenth of the text to choose among them.
    pub settings: Vec<f64>,
    /// Tokens per calibration window.
    pub window: usize,
    /// Windows begin with the beginning-of-sequence token, where the tokenizer adds one.
    pub bos: bool,
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
            settings: Vec::new(),
            window: 256,
            bos: true,
            max_tokens: 65_536,
        }
    }
}

/// A stage of the work, for progress bars.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Reading the text through the model.
    Observing,
    /// Giving neurons or inputs rows of their own, in bytes.
    Transposing,
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

impl Stage {
    /// What is done, in a few words.
    pub fn name(self) -> &'static str {
        match self {
            Stage::Observing => "observing activations",
            Stage::Transposing => "transposing weights",
            Stage::Predicting => "computing predictors",
            Stage::Training => "training predictors",
            Stage::Thresholding => "calibrating thresholds",
            Stage::Searching => "searching",
            Stage::Evaluating => "measuring quality",
            Stage::Writing => "writing weights",
        }
    }
}

/// Called with a stage, what is done of it and what there is to do.
pub type Progress<'a> = dyn FnMut(Stage, u64, u64) + 'a;
