//! What gives the neurons of an MLP the scores that a rule decides by.

use std::sync::Arc;

use sparrow_kernels::Activation;

use crate::error::Result;
use crate::tensor::Tensor;

/// Whether an activation is exactly zero over half its inputs, so that skipping zeros loses nothing.
pub fn is_relu_family(activation: Activation) -> bool {
    matches!(activation, Activation::Relu | Activation::DoubleRelu | Activation::FatRelu(_) | Activation::ReluSquared)
}

/// What gives the neurons of every layer their scores. Every backend knows how to compute each of these; a selector says which one,
/// and by which rule neurons are then kept.
#[derive(Debug, Clone)]
pub enum Scorer {
    /// The gate itself, computed exactly and activated (an ungated MLP's up projection); with what calibration knows of the neurons
    /// beside, one per layer.
    Gate(Option<Arc<[GateNeurons]>>),
    /// Low-rank predictors of the gate, one per layer.
    LowRank(Arc<[Predictor]>),
    /// The share of positive products less that of negative ones, from sign bits, one per layer.
    Signs(Arc<[SignBits]>),
    /// No scores: masks made beforehand.
    Masks(Arc<MaskCycle>),
}

impl Scorer {
    /// Whether a layer's scores are gate values, which are activated and compared by magnitude: what they let through. Others are
    /// compared as they are. Above zero ReLU is the identity and below it a prediction still ranks neurons, and so do log-odds.
    pub fn compares_magnitudes(&self, activation: Activation, layer: usize) -> bool {
        match self {
            Scorer::Gate(_) => true,
            Scorer::LowRank(predictors) => !is_relu_family(activation) && !predictors[layer].logits,
            Scorer::Signs(_) | Scorer::Masks(_) => false,
        }
    }

    /// Bytes that scoring a layer reads beside the gate.
    pub fn bytes(&self, layer: usize) -> u64 {
        match self {
            Scorer::LowRank(predictors) => predictors[layer].bytes(),
            Scorer::Signs(signs) => signs[layer].bytes(),
            Scorer::Gate(neurons) => neurons.as_ref().map_or(0, |neurons| neurons[layer].bytes()),
            Scorer::Masks(_) => 0,
        }
    }

    /// What calibration knows of a layer's neurons beside their gates.
    pub fn gate_neurons(&self, layer: usize) -> Option<&GateNeurons> {
        match self {
            Scorer::Gate(Some(neurons)) => Some(&neurons[layer]),
            _ => None,
        }
    }
}

/// What is known of the neurons of one layer without computing them. What the gate lets through is weighted by what it is expected to
/// bring (CHESS, arXiv 2409.01366), and a neuron that is left out counts with the mean of its values where it is.
#[derive(Debug, Clone)]
pub struct GateNeurons {
    /// What `|act(gate)|` is multiplied with before it is compared: the mean of `|up|`, where there is a gate, times the norm of the
    /// neuron's outputs, `[intermediate]`.
    pub weights: Vec<f32>,
    /// What stands for a neuron that is left out, `[intermediate]`.
    pub left_out: Vec<f32>,
    /// What the MLP gives where all neurons are left out: their outputs and its bias, `[hidden]`.
    pub rest: Vec<f32>,
}

impl GateNeurons {
    /// Bytes read per token.
    pub fn bytes(&self) -> u64 {
        size_of_val(self.weights.as_slice()) as u64
    }
}

/// A low-rank predictor of a gate: `scores = (h·Aᵀ)·Bᵀ + bias`.
#[derive(Debug, Clone)]
pub struct Predictor {
    /// `A`, `[r, hidden]`.
    pub a: Tensor,
    /// `B`, `[intermediate, r]`.
    pub b: Tensor,
    /// `[intermediate]`.
    pub bias: Vec<f32>,
    /// Trained to classify: it gives log-odds of being active instead of gate values.
    pub logits: bool,
}

impl Predictor {
    /// Reads mapped matrices into memory.
    ///
    /// # Errors
    /// If a file cannot be read or has become shorter, or memory runs out.
    pub fn read_into_memory(&mut self) -> Result<()> {
        (self.a, self.b) = (self.a.to_memory()?, self.b.to_memory()?);
        Ok(())
    }

    /// Columns of `B`.
    pub fn rank(&self) -> usize {
        self.a.rows()
    }

    /// Bytes read per token.
    pub fn bytes(&self) -> u64 {
        (self.a.bytes().len() + self.b.bytes().len()) as u64
    }
}

/// The sign bits of one layer's gate, `[intermediate, ceil(hidden / 64)]`: a sixteenth of a bf16 gate's bytes.
#[derive(Debug, Clone)]
pub struct SignBits {
    /// Bit `j` of a row: weight `j` is negative.
    pub bits: Vec<u64>,
    /// Columns of the gate.
    pub hidden: usize,
}

impl SignBits {
    /// Bytes read per token.
    pub fn bytes(&self) -> u64 {
        size_of_val(self.bits.as_slice()) as u64
    }
}

/// Masks that follow each other token by token, over and over.
#[derive(Debug)]
pub struct MaskCycle {
    /// Per layer: `[length, ceil(intermediate / 64)]`.
    pub masks: Vec<Vec<u64>>,
    /// Tokens until they repeat.
    pub length: usize,
}
