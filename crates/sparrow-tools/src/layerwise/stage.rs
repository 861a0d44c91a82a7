//! What progress is reported of.

/// A stage of the work, for progress bars.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Looking at what enters each matrix, in tokens times layers.
    Allocating,
    /// Measuring what errors are worth, in inputs of layers.
    Weighing,
    /// Reading the text, and changing layer after layer, in tokens times layers.
    Changing,
    /// Measuring quality, in tokens.
    Evaluating,
}

impl Stage {
    /// What is done, in a few words; `changing` says what of layers.
    pub fn name(self, changing: &'static str) -> &'static str {
        match self {
            Stage::Allocating => "observing activations",
            Stage::Weighing => "measuring what errors cost",
            Stage::Changing => changing,
            Stage::Evaluating => "measuring quality",
        }
    }
}

/// Called with a stage, what is done of it and what there is to do.
pub type Progress<'a> = dyn FnMut(Stage, u64, u64) + 'a;
