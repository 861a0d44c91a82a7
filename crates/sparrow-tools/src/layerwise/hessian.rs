//! The Hessian of a matrix's squared error: the products of its inputs.

use std::ops::Range;

use sparrow::Cpu;
use sparrow_linalg::{View, ViewMut, add_product, inverse_cholesky_factor};

/// Share of the mean of a Hessian's diagonal that is added to it, so that it can be inverted (arXiv 2301.00774, 2210.17323).
const DAMPING: f64 = 0.01;

/// Rows of a matrix that one task works on.
const ROWS: usize = 16;

/// `XᵀX` of the calibration text, `[n, n]`: half the Hessian of an output's squared error. 4·n² bytes.
#[derive(Debug, Clone)]
pub(crate) struct Hessian {
    products: Vec<f32>,
    n: usize,
}

impl Hessian {
    /// Of products of `n` inputs, whose upper triangle counts.
    ///
    /// # Panics
    /// If there are not `n · n`.
    pub fn new(mut products: Vec<f32>, n: usize) -> Self {
        assert_eq!(products.len(), n * n, "{n} x {n} products, found {}", products.len());
        for i in 1..n {
            for j in 0..i {
                products[i * n + j] = products[j * n + i];
            }
        }
        Hessian { products, n }
    }

    /// The products of each input with itself.
    pub fn diagonal(&self) -> Vec<f32> {
        self.products.iter().step_by(self.n + 1).copied().collect()
    }

    /// With so much added to the diagonal that it can be inverted.
    #[must_use]
    pub fn damped(mut self) -> Self {
        let diagonal = self.products.iter().step_by(self.n + 1);
        let mean = diagonal.map(|&v| f64::from(v)).sum::<f64>() / self.n as f64;
        // Where nothing ever enters every weight is as good as any other.
        let damping = if mean > 0.0 { DAMPING * mean } else { 1.0 };
        self.products.iter_mut().step_by(self.n + 1).for_each(|v| *v += damping as f32);
        self
    }

    /// With its inputs in another order: the first is then `order[0]`.
    #[must_use]
    pub fn reordered(&self, order: &[usize]) -> Self {
        let rows = order.iter().map(|&i| &self.products[i * self.n..][..self.n]);
        let products = rows.flat_map(|row| order.iter().map(move |&j| row[j])).collect();
        Hessian { products, n: self.n }
    }

    /// `U` with `Uᵀ·U = H⁻¹`, `[n, n]`; see [`inverse_cholesky_factor`]. None if it cannot be factored.
    pub fn inverse_factor(self) -> Option<Vec<f32>> {
        inverse_cholesky_factor(self.products, self.n)
    }

    /// Its inputs.
    pub fn inputs(&self) -> usize {
        self.n
    }

    /// The products of input `j` with all.
    pub fn row(&self, j: usize) -> &[f32] {
        &self.products[j * self.n..][..self.n]
    }

    /// The products of the inputs `rows` with the inputs `columns`.
    pub fn part(&self, rows: Range<usize>, columns: Range<usize>) -> View<'_> {
        View::strided(&self.products[rows.start * self.n + columns.start..], rows.len(), columns.len(), self.n)
    }

    /// `rows · H`, on the calling thread alone; `rows` is `[any, n]`.
    pub fn times(&self, rows: &[f32]) -> Vec<f32> {
        let (n, mut out) = (self.n, vec![0.0; rows.len()]);
        let (left, right) = (View::new(rows, rows.len() / n, n), View::new(&self.products, n, n));
        add_product(1.0, left, right, ViewMut::strided(&mut out, rows.len() / n, n, n));
        out
    }

    /// The squared error of all outputs over the text where weights are off by `difference`, `[rows, n]`.
    pub fn error(&self, cpu: &Cpu, difference: &[f32]) -> f64 {
        let part = ROWS * self.n;
        let mut errors = vec![0.0; difference.len().div_ceil(part)];
        cpu.compute.pool().for_chunks(&mut errors, 1, &|i, error| {
            let difference = &difference[i * part..difference.len().min((i + 1) * part)];
            let products = self.times(difference);
            error[0] = difference.iter().zip(&products).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum();
        });
        errors.iter().sum()
    }
}
