//! Activations by the names that transformers has for them.

use sparrow_kernels::Activation;

use crate::torch::fault::{Fault, Result};

const NAMES: &[(&str, Activation)] = &[
    ("silu", Activation::Silu),
    ("swish", Activation::Silu),
    ("relu", Activation::Relu),
    ("relu2", Activation::ReluSquared),
    ("gelu", Activation::Gelu),
    ("gelu_new", Activation::GeluTanh),
    ("gelu_fast", Activation::GeluTanh),
    ("gelu_pytorch_tanh", Activation::GeluTanh),
    ("quick_gelu", Activation::GeluSigmoid),
];

/// The activation of this name.
pub fn activation(name: &str) -> Result<Activation> {
    let found = NAMES.iter().find(|(known, _)| *known == name).map(|(_, activation)| *activation);
    found.ok_or_else(|| {
        let known: Vec<&str> = NAMES.iter().map(|(known, _)| *known).collect();
        Fault::Option(format!("activation: expected one of {}, found {name:?}", known.join(", ")))
    })
}
