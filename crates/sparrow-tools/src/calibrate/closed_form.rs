//! Low-rank predictors of the gate's pre-activations, in closed form.
//!
//! The gate `g = W·x + b` is linear, so among all rank-r maps the one with the least expected squared error over the
//! calibration inputs is known: with `C = E[x·xᵀ]` and the leading left singular vectors `U` of `W·C^½`, it is `U·Uᵀ·W`
//! (activation-aware SVD, as in ASVD, arXiv 2312.05821, and SVD-LLM, arXiv 2403.07378). It is stored as
//! `B = U` (`[intermediate, r]`) and `A = Uᵀ·W` (`[r, hidden]`), and read with two thin matrix products per token.
//!
//! A predictor that looks ahead sees another input `z`, that of the attention before. The best unrestricted linear map
//! from it is `V = W·E[x·zᵀ]·E[z·zᵀ]⁻¹`, and the best of rank r is that of `V` for inputs `z` (reduced-rank regression).

use sparrow::internals::backend::Predictor;
use sparrow::internals::tensor::Tensor;
use sparrow::internals::weights::Linear;
use sparrow::{DType, Error, Result};
use sparrow_kernels::encode;
use sparrow_linalg::Matrix;

/// Second moments of the inputs of a layer's gate, `[hidden, hidden]` each, row-major.
#[derive(Debug, Clone)]
pub struct InputMoments {
    /// `E[z·zᵀ]` of the predictor's inputs `z`.
    pub predictor: Vec<f64>,
    /// `E[x·zᵀ]`, where the gate's inputs `x` are others than the predictor's.
    pub cross: Option<Vec<f64>>,
}

/// The best rank-`rank` predictor of `gate` for inputs with these moments.
///
/// # Errors
/// If the rank is 0 or above the hidden size, or the moments have values that are not finite.
pub fn closed_form(gate: &Linear, moments: &InputMoments, rank: usize) -> Result<Predictor> {
    let (n, hidden) = (gate.weight.rows(), gate.weight.cols());
    if rank == 0 || rank > hidden.min(n) {
        return Err(Error::option("rank", format!("must be in 1..={}, found {rank}", hidden.min(n))));
    }
    if moments.predictor.iter().chain(moments.cross.iter().flatten()).any(|v| !v.is_finite()) {
        return Err(Error::option("text", "the model's activations are not finite on this text"));
    }
    let mut stored = vec![0.0f32; n * hidden];
    gate.weight.decode(0..n, &mut stored);
    let mut w = Matrix::new(n, hidden, stored.into_iter().map(f64::from).collect());
    let square = |values: &[f64]| Matrix::new(hidden, hidden, values.to_vec());
    let c = square(&moments.predictor);
    if let Some(cross) = &moments.cross {
        // Directions that the inputs hardly take would be inverted into noise.
        let trace: f64 = (0..hidden).map(|i| c.at(i, i)).sum();
        let ridge = (trace / hidden as f64 * 1e-6).max(f64::MIN_POSITIVE);
        let damped = Matrix::from_fn(hidden, hidden, |i, j| c.at(i, j) + if i == j { ridge } else { 0.0 });
        // V = W·E[x·zᵀ]·C⁻¹, from C·Vᵀ = (W·E[x·zᵀ])ᵀ.
        let right = w.times(&square(cross)).transposed();
        let solution = damped.solve_positive_definite(&right);
        w = solution.ok_or_else(|| failed("the inputs' covariance has no Cholesky factor"))?.transposed();
    }

    // C^½ exists also where C is singular (fewer calibration tokens than hidden dimensions).
    let eigen = c.symmetric_eigen().ok_or_else(|| failed("the inputs' covariance has no eigenvectors"))?;
    let roots: Vec<f64> = eigen.values.iter().map(|v| v.max(0.0).sqrt()).collect();
    let scaled = Matrix::from_fn(hidden, hidden, |i, j| eigen.vectors.at(i, j) * roots[j]);
    let whitened = w.times(&scaled.times(&eigen.vectors.transposed()));
    let gram = whitened.gram().symmetric_eigen();
    let gram = gram.ok_or_else(|| failed("the whitened gate has no singular vectors"))?;
    // Eigenvalues ascend: the last are the largest.
    let leading = Matrix::from_fn(hidden, rank, |i, j| gram.vectors.at(i, hidden - 1 - j));
    let b = whitened.times(&leading);
    // A direction that the inputs never take has no singular vector, and needs none.
    let norm = |j| (0..n).map(|i| b.at(i, j).powi(2)).sum::<f64>().sqrt();
    let scales: Vec<f64> = (0..rank).map(norm).map(|norm| if norm > 0.0 { norm.recip() } else { 0.0 }).collect();
    let b = Matrix::from_fn(n, rank, |i, j| b.at(i, j) * scales[j]);
    let a = b.transposed().times(&w);
    let bias = gate.bias.clone().unwrap_or_else(|| vec![0.0; n]);
    Ok(Predictor { a: tensor(&a)?, b: tensor(&b)?, bias, logits: false })
}

fn failed(what: &str) -> Error {
    Error::option("text", format!("{what}: calibrate on more, or more varied, text"))
}

/// As f16: three more bits of precision than bf16, and its range is ample for orthonormal columns.
fn tensor(m: &Matrix) -> Result<Tensor> {
    Tensor::in_memory(DType::F16, m.rows(), m.cols(), |out| {
        let values: Vec<f32> = m.values().iter().map(|&v| v as f32).collect();
        encode(DType::F16, &values, out);
    })
}
