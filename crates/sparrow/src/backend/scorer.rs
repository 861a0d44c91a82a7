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
    /// The gate itself, computed exactly and activated (an ungated MLP's up projection).
    Gate,
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
            Scorer::Gate => true,
            Scorer::LowRank(predictors) => !is_relu_family(activation) && !predictors[layer].logits,
            Scorer::Signs(_) | Scorer::Masks(_) => false,
        }
    }

    /// Bytes that scoring a layer reads beside the gate.
    pub fn bytes(&self, layer: usize) -> u64 {
        match self {
            Scorer::LowRank(predictors) => predictors[layer].bytes(),
            Scorer::Signs(signs) => signs[layer].bytes(),
            Scorer::Gate | Scorer::Masks(_) => 0,
        }
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
