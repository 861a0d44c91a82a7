//! What calibration keeps of a text read by the dense model, in one pass and bounded memory, and the thresholds it gives.

mod blocks;
mod closed_form;
mod gate_neurons;
mod gates;
mod inputs;
mod neurons;
mod rest;
mod sample;
mod worth;

pub(crate) use blocks::BlockInfluence;
pub use closed_form::{InputMoments, closed_form};
pub(crate) use gate_neurons::{expected_worth, means_left_out};
pub(crate) use gates::Gates;
pub(crate) use inputs::{InputCalibration, InputSamples, column_norms};
pub use neurons::ScoreCurve;
pub(crate) use neurons::{LayerSamples, NeuronSamples, thresholds_for_active, thresholds_for_recall};
pub(crate) use rest::{Rest, divergence};
pub(crate) use sample::Sample;
pub(crate) use worth::{TOKENS, Worth};
