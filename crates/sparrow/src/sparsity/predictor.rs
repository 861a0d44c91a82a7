//! Low-rank predictors of the gate's pre-activations, in closed form.
//!
//! The gate `g = W·x + b` is linear, so among all rank-r maps the one with the least expected squared error over the
//! calibration inputs is known: with `C = E[x·xᵀ] = L·Lᵀ` and the SVD `W·L = U·S·Vᵀ`, it is `Uᵣ·Uᵣᵀ·W`
//! (activation-aware SVD, as in ASVD, arXiv 2312.05821, and SVD-LLM, arXiv 2403.07378). It is stored as
//! `B = Uᵣ` (`[intermediate, r]`) and `A = Uᵣᵀ·W` (`[r, hidden]`), and read with two thin matrix products per token.

use nalgebra::{DMatrix, SymmetricEigen};
use sparrow_kernels::{DType, decode, encode};

use crate::checkpoint::Tensor;
use crate::error::{Error, Result};
use crate::model::weights::Linear;

/// `A` `[r, hidden]`, `B` `[intermediate, r]` and the gate's own bias `[intermediate]`.
#[derive(Debug, Clone)]
pub struct Predictor {
    /// `[r, hidden]`.
    pub a: Tensor,
    /// `[intermediate, r]`.
    pub b: Tensor,
    /// `[intermediate]`, zero for a gate without bias.
    pub bias: Vec<f32>,
}

impl Predictor {
    /// The best rank-`rank` predictor of `gate` for inputs with second moment `covariance`, `[hidden, hidden]`.
    ///
    /// # Errors
    /// If the rank is 0 or above the hidden size, or the covariance has values that are not finite.
    pub fn closed_form(gate: &Linear, covariance: &[f64], rank: usize) -> Result<Self> {
        let (n, hidden) = (gate.weight.rows(), gate.weight.cols());
        if rank == 0 || rank > hidden.min(n) {
            return Err(Error::option("rank", format!("must be in 1..={}, found {rank}", hidden.min(n))));
        }
        if covariance.iter().any(|v| !v.is_finite()) {
            return Err(Error::option("calibration", "the model's activations are not finite on this text"));
        }
        let mut w = vec![0.0f32; n * hidden];
        decode(gate.weight.dtype(), gate.weight.bytes(), &mut w);
        let w = DMatrix::from_row_iterator(n, hidden, w.into_iter().map(f64::from));

        // The left singular vectors of W·L are those of W·C^½ for any factor C = L·Lᵀ; C^½ also exists where C is
        // singular (fewer calibration tokens than hidden dimensions).
        let c = SymmetricEigen::new(DMatrix::from_row_slice(hidden, hidden, covariance));
        let roots = c.eigenvalues.map(|v| v.max(0.0).sqrt());
        let root = &c.eigenvectors * DMatrix::from_diagonal(&roots) * c.eigenvectors.transpose();
        let whitened = &w * root;
        let gram = SymmetricEigen::new(whitened.transpose() * &whitened);
        let mut order: Vec<usize> = (0..hidden).collect();
        order.sort_by(|&i, &j| gram.eigenvalues[j].total_cmp(&gram.eigenvalues[i]));

        let mut b = DMatrix::zeros(n, rank);
        for (column, &i) in order[..rank].iter().enumerate() {
            let u = &whitened * gram.eigenvectors.column(i);
            let norm = u.norm();
            // A direction that the inputs never take has no singular vector, and needs none.
            if norm > 0.0 {
                b.set_column(column, &(u / norm));
            }
        }
        let a = b.transpose() * &w;
        let bias = gate.bias.clone().unwrap_or_else(|| vec![0.0; n]);
        Ok(Predictor { a: tensor(&a)?, b: tensor(&b)?, bias })
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

/// As f16: three more bits of precision than bf16, and its range is ample for orthonormal columns.
fn tensor(m: &DMatrix<f64>) -> Result<Tensor> {
    Tensor::in_memory(DType::F16, m.nrows(), m.ncols(), |out| {
        // Column-major: the columns of the transpose are the rows.
        let values: Vec<f32> = m.transpose().iter().map(|&v| v as f32).collect();
        encode(DType::F16, &values, out);
    })
}
