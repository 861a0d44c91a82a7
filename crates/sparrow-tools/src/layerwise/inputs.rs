//! What pruning needs to know of the inputs of a layer's matrices, summed up over the calibration text.

use sparrow::internals::backend::{ActiveNeurons, Observer, Point};
use sparrow::internals::spec::ModelSpec;
use sparrow::{Cpu, Error, Result};
use sparrow_linalg::{View, ViewMut, add_product, inverse_cholesky_factor};

use super::options::Method;
use super::tensors::{Input, Prunable};

/// Share of the mean of a Hessian's diagonal that is added to it, so that it can be inverted (arXiv 2301.00774).
const DAMPING: f64 = 0.01;

/// Rows of a Hessian, and inputs, that are summed together: the sums do not depend on the number of threads.
const TILE: usize = 128;

/// Sums over the tokens of what enters a matrix.
enum Sums {
    /// Of squares, `[n]`.
    Squares(Vec<f64>),
    /// Of products, `[n, n]`, of which the upper triangle counts: half the Hessian of the squared error of an output. 4·n² bytes.
    Products(Vec<f32>),
}

/// What an input was over the calibration text, ready to prune by.
pub(super) enum Statistics {
    /// `‖x_j‖₂` of each input, `[n]`.
    Norms(Vec<f32>),
    /// `U` with `Uᵀ·U = H⁻¹`, `[n, n]`; see [`inverse_cholesky_factor`].
    InverseFactor(Vec<f32>),
}

/// Sums up the inputs of one layer's matrices; see [`Input::ALL`] for the order.
pub(super) struct LayerInputs<'a> {
    cpu: &'a Cpu,
    sums: [Option<Sums>; 4],
}

impl<'a> LayerInputs<'a> {
    /// Those that `method` needs for these matrices.
    pub fn new(cpu: &'a Cpu, spec: &ModelSpec, method: Method, matrices: &[Prunable]) -> Self {
        let sums = Input::ALL.map(|input| {
            let n = input.width(spec);
            match method {
                _ if matrices.iter().all(|m| m.input != input) => None,
                Method::Magnitude => None,
                Method::Wanda => Some(Sums::Squares(vec![0.0; n])),
                Method::SparseGpt => Some(Sums::Products(vec![0.0; n * n])),
            }
        });
        LayerInputs { cpu, sums }
    }

    /// What was seen of `input`, whose sums are given up; none if it is not needed.
    ///
    /// # Errors
    /// If activations were not finite, or the Hessian cannot be factored.
    pub fn take(&mut self, input: Input, layer: usize) -> Result<Option<Statistics>> {
        let not_finite =
            || Error::option("text", format!("the activations of layer {layer} are not finite on this text"));
        Ok(match self.sums[input as usize].take() {
            None => None,
            Some(Sums::Squares(sums)) => {
                let norms: Vec<f32> = sums.iter().map(|sum| sum.sqrt() as f32).collect();
                if norms.iter().any(|norm| !norm.is_finite()) {
                    return Err(not_finite());
                }
                Some(Statistics::Norms(norms))
            }
            Some(Sums::Products(mut products)) => {
                let n = products.len().isqrt();
                let diagonal = |i: usize| i * n + i;
                let mean = (0..n).map(|i| f64::from(products[diagonal(i)])).sum::<f64>() / n as f64;
                if !mean.is_finite() {
                    return Err(not_finite());
                }
                // Where nothing ever enters every weight is as good as any other.
                let damping = if mean > 0.0 { DAMPING * mean } else { 1.0 };
                (0..n).for_each(|i| products[diagonal(i)] += damping as f32);
                let factor = inverse_cholesky_factor(products, n).ok_or_else(|| {
                    let message = format!("the Hessian of layer {layer} cannot be factored: use more tokens, or wanda");
                    Error::option("method", message)
                })?;
                Some(Statistics::InverseFactor(factor))
            }
        })
    }

    fn add(&mut self, input: Input, x: &[f32], m: usize) {
        let n = x.len() / m;
        match &mut self.sums[input as usize] {
            None => {}
            Some(Sums::Squares(sums)) => self.cpu.compute.pool().for_chunks(sums, TILE, &|i, sums| {
                for row in x.chunks_exact(n) {
                    let row = &row[i * TILE..][..sums.len()];
                    sums.iter_mut().zip(row).for_each(|(sum, &v)| *sum += f64::from(v) * f64::from(v));
                }
            }),
            Some(Sums::Products(products)) => self.cpu.compute.pool().for_chunks(products, TILE * n, &|i, products| {
                let (first, rows) = (i * TILE, products.len() / n);
                let left = View::strided(&x[first..], m, rows, n).transposed();
                let right = View::strided(&x[first..], m, n - first, n);
                add_product(1.0, left, right, ViewMut::strided(&mut products[first..], rows, n - first, n));
            }),
        }
    }
}

impl Observer for LayerInputs<'_> {
    fn see(&mut self, _: usize, point: Point, values: &[f32], m: usize) {
        match point {
            Point::AttentionInput => self.add(Input::Attention, values, m),
            Point::Attended => self.add(Input::Output, values, m),
            Point::Neurons => self.add(Input::Down, values, m),
            Point::Residual | Point::MiddleResidual => {}
        }
    }

    fn mlp(&mut self, _: usize, h: &[f32], m: usize, _: Option<ActiveNeurons>) {
        self.add(Input::Mlp, h, m);
    }
}
