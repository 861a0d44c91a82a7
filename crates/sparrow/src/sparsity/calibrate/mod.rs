//! What calibration keeps of a text read by the dense model, in one pass and bounded memory, and the thresholds it gives.

mod blocks;
mod inputs;
mod neurons;
mod sample;

pub(crate) use super::observe::Gates;
pub(crate) use blocks::BlockInfluence;
pub(crate) use inputs::{InputCalibration, InputSamples};
pub use neurons::ScoreCurve;
pub(crate) use neurons::{LayerSamples, NeuronSamples, Scorer, thresholds_for_active, thresholds_for_recall};
