//! Weights, decoded once: every element of every matrix as an f64.

use std::sync::Arc;

use sparrow::Result;
use sparrow::internals::tensor::{Tensor, Weight};
use sparrow::internals::weights::{LayerWeights, Linear, Weights};
use sparrow_kernels::{Compute, Isa};

use super::rows::Rows;
use crate::reference::{as_seen, dot, row_of};

/// A model's weights where this backend computes with them.
pub struct Placed {
    /// As they are stored: norms are taken from there, and sizes in bytes.
    pub stored: Arc<Weights>,
    /// `[vocab, hidden]`.
    pub embedding: Tensor,
    /// `[positions, hidden]`, where positions are learned.
    pub positions: Option<Tensor>,
    /// The linear layers of each decoder layer.
    pub layers: Vec<Layer>,
    /// `[vocab, hidden]`.
    pub head: Matrix,
}

/// The linear layers of one decoder layer.
pub struct Layer {
    pub q: Matrix,
    pub k: Matrix,
    pub v: Matrix,
    pub o: Matrix,
    /// Of a gated MLP.
    pub gate: Option<Matrix>,
    pub up: Matrix,
    pub down: Matrix,
}

/// A linear layer.
pub struct Matrix {
    /// As stored, every element: its type says how inputs are seen.
    tensor: Tensor,
    /// `[out, in]`, or `[in, out]` if input-major.
    rows: Rows,
    /// `[out]`.
    bias: Vec<f64>,
    input_major: bool,
    /// What reading the stored weights takes.
    pub bytes: u64,
}

impl Placed {
    /// Decodes `weights`.
    ///
    /// # Errors
    /// If memory runs out.
    pub fn new(weights: &Arc<Weights>) -> Result<Self> {
        Ok(Placed {
            stored: weights.clone(),
            embedding: whole(&weights.embedding)?,
            positions: weights.positions.as_ref().map(whole).transpose()?,
            layers: weights.layers.iter().map(Layer::new).collect::<Result<_>>()?,
            head: Matrix::of(whole(&weights.head)?),
        })
    }
}

impl Layer {
    fn new(w: &LayerWeights) -> Result<Self> {
        let [q, k, v, o] = [&w.q, &w.k, &w.v, &w.o].map(Matrix::new);
        let [up, down] = [&w.mlp.up, &w.mlp.down].map(Matrix::new);
        let gate = w.mlp.gate.as_ref().map(Matrix::new).transpose()?;
        Ok(Layer { q: q?, k: k?, v: v?, o: o?, gate, up: up?, down: down? })
    }

    /// What decides which neurons are active: the gate, or the up projection of an ungated MLP.
    pub fn deciding(&self) -> &Matrix {
        self.gate.as_ref().unwrap_or(&self.up)
    }
}

impl Matrix {
    fn new(linear: &Linear) -> Result<Self> {
        let mut matrix = Matrix::of(whole(&linear.weight)?);
        (matrix.input_major, matrix.bytes) = (linear.input_major, linear.weight.byte_len());
        matrix.bias.resize(matrix.outputs(), 0.0);
        if let Some(bias) = &linear.bias {
            matrix.bias = bias.iter().map(|&b| f64::from(b)).collect();
        }
        Ok(matrix)
    }

    /// A matrix `[out, in]` without bias.
    pub fn of(tensor: Tensor) -> Self {
        let rows: Rows = (0..tensor.rows()).map(|row| row_of(&tensor, row)).collect();
        let (bias, bytes) = (vec![0.0; rows.len()], tensor.bytes().len() as u64);
        Matrix { tensor, rows, bias, input_major: false, bytes }
    }

    /// Inputs, whatever the layout.
    pub fn inputs(&self) -> usize {
        if self.input_major { self.tensor.rows() } else { self.tensor.cols() }
    }

    /// Outputs, whatever the layout.
    pub fn outputs(&self) -> usize {
        if self.input_major { self.tensor.cols() } else { self.tensor.rows() }
    }

    /// `x·Wᵀ + b`, `[out]`, of one row `x`, `[in]`. Quantised weights whose rows are
    /// outputs see `x` in 16-bit integers.
    pub fn times(&self, x: &[f64]) -> Vec<f64> {
        let mut out = self.bias.clone();
        if self.input_major {
            for (x, row) in x.iter().zip(&self.rows) {
                out.iter_mut().zip(row).for_each(|(out, w)| *out += x * w);
            }
        } else {
            let x = as_seen(&self.tensor, x);
            out.iter_mut().zip(&self.rows).for_each(|(out, row)| *out += dot(row, &x));
        }
        out
    }
}

/// The matrix with every element stored.
fn whole(weight: &Weight) -> Result<Tensor> {
    match weight {
        Weight::Dense(tensor) => Ok(tensor.clone()),
        Weight::Bitmap(bitmap) => bitmap.unpack(&Compute::with_isa(Isa::Scalar, Some(1)).expect("every CPU has it")),
    }
}
