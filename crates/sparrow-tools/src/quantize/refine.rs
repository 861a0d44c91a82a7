//! What GPTQ leaves to gain: with all codes in place, each scale and each code is set to what is best beside all others.

use sparrow::Cpu;

use super::grid::{Grid, Scale};
use super::options::Along;
use super::round::Rounded;
use crate::layerwise::Hessian;

/// Times that all scales and codes are gone through; later ones gain next to nothing.
const SWEEPS: usize = 4;

/// Lowers the squared error of the outputs by descent in one coordinate after the other: scales, then codes.
pub(super) fn refine(cpu: &Cpu, grid: &Grid, weights: &[f32], hessian: &Hessian, rounded: &mut Rounded) {
    let n = hessian.inputs();
    let rows = grid.rows();
    let values = rounded.values.chunks_mut(rows * n).zip(weights.chunks(rows * n));
    let parts = values.zip(rounded.scales.chunks_mut(grid.scales(rows, n)));
    let part = |((values, weights), scales): ((_, _), _)| (values, weights, scales);
    let mut parts: Vec<(&mut [f32], &[f32], &mut [Scale])> = parts.map(part).collect();
    cpu.compute.pool().for_chunks(&mut parts, 1, &|_, parts| {
        for (values, weights, scales) in parts {
            let difference: Vec<f32> = weights.iter().zip(values.iter()).map(|(w, v)| w - v).collect();
            let gradients = hessian.times(&difference);
            let mut rows = Rows { grid, hessian, n, values, scales, gradients };
            for _ in 0..SWEEPS {
                rows.refit_all();
                rows.recode_all();
            }
        }
    });
}

/// Rows whose scales no other row has.
struct Rows<'a> {
    grid: &'a Grid,
    hessian: &'a Hessian,
    n: usize,
    /// `[rows, n]`.
    values: &'a mut [f32],
    scales: &'a mut [Scale],
    /// `H · (weights − values)` of each row, half of that of the error, downwards.
    gradients: Vec<f32>,
}

impl Rows<'_> {
    // All rows take a step before the next, for they read the same part of the Hessian.

    fn refit_all(&mut self) {
        let rows = self.values.len() / self.n;
        match self.grid.along {
            Along::Input => {
                for first in (0..self.n).step_by(self.grid.group) {
                    (0..rows).for_each(|r| self.refit(r..r + 1, first..self.n.min(first + self.grid.group)));
                }
            }
            Along::Output => (0..self.n).for_each(|j| self.refit(0..rows, j..j + 1)),
        }
    }

    /// Sets the scale of the group of these rows and columns to the best for all codes.
    fn refit(&mut self, rows: std::ops::Range<usize>, columns: std::ops::Range<usize>) {
        let n = self.n;
        let at = self.grid.scale_at(rows.start, columns.start, n);
        let of = self.scales[at];
        let code = |value: f32| self.grid.code(value, of) - of.zero;
        let row_codes = |r: usize| self.values[r * n..][columns.clone()].iter().map(|&value| code(value));
        let codes: Vec<Vec<f32>> = rows.clone().map(|r| row_codes(r).collect()).collect();
        let (mut slope, mut curvature) = (0.0, 0.0);
        for (r, codes) in rows.clone().zip(&codes) {
            slope += dot(codes, &self.gradients[r * n..][columns.clone()]);
            let products = |j: usize| dot(codes, &self.hessian.row(j)[columns.clone()]);
            curvature += codes.iter().zip(columns.clone()).map(|(code, j)| code * products(j)).sum::<f32>();
        }
        if curvature <= 0.0 {
            return;
        }
        let scale = self.grid.stored(of.scale + slope / curvature);
        let step = scale - of.scale;
        // Rounded to what files hold, a step may lead uphill.
        if step != 0.0 && step * (step * curvature - 2.0 * slope) < 0.0 {
            self.scales[at].scale = scale;
            for (r, codes) in rows.zip(&codes) {
                let gradient = &mut self.gradients[r * n..][..n];
                for (code, j) in codes.iter().zip(columns.clone()) {
                    self.values[r * n + j] = code * scale;
                    descend(gradient, self.hessian.row(j), step * code);
                }
            }
        }
    }

    /// Sets each code to the best beside all others.
    fn recode_all(&mut self) {
        let n = self.n;
        for j in 0..n {
            let products = self.hessian.row(j);
            let rows = self.values.chunks_exact_mut(n).zip(self.gradients.chunks_exact_mut(n));
            for (r, (values, gradient)) in rows.enumerate() {
                let wanted = values[j] + gradient[j] / products[j];
                let value = self.grid.round(wanted, self.scales[self.grid.scale_at(r, j, n)]);
                let step = value - values[j];
                if step != 0.0 && step * (step * products[j] - 2.0 * gradient[j]) < 0.0 {
                    values[j] = value;
                    descend(gradient, products, step);
                }
            }
        }
    }
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// The gradient after a value took a step.
fn descend(gradient: &mut [f32], products: &[f32], step: f32) {
    gradient.iter_mut().zip(products).for_each(|(gradient, h)| *gradient -= step * h);
}
