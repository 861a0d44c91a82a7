//! What makes and measures models.

mod calibration;
mod closed_form;
mod evaluation;
mod families;
mod gate_neurons;
mod inputs;
mod interrupted;
mod observers;
mod packing;
mod pruning;
mod quantizing;
mod real_models;
mod sidecars;
mod sparsify;
mod text;
mod traffic;
mod tuning;
