//! What GPTQ leaves to gain: with all codes in place, each scale and each code is set to what is best beside all others.

use sparrow::Cpu;

use super::grid::{Grid, Scale};
use super::round::Rounded;
use crate::layerwise::Hessian;

/// Rows that one task works on.
const ROWS: usize = 16;

/// Times that all scales and codes are gone through; later ones gain next to nothing.
const SWEEPS: usize = 4;

/// Lowers the squared error of the outputs by descent in one coordinate after the other: scales, then codes.
pub(super) fn refine(cpu: &Cpu, grid: &Grid, weights: &[f32], hessian: &Hessian, rounded: &mut Rounded) {
    let n = hessian.inputs();
    let groups = grid.groups(n);
    let mut rows: Vec<Row> = rounded
        .values
        .chunks_exact_mut(n)
        .zip(rounded.scales.chunks_exact_mut(groups))
        .zip(weights.chunks_exact(n))
        .map(|((values, scales), weights)| Row { values, scales, weights })
        .collect();
    cpu.compute.pool().for_chunks(&mut rows, ROWS, &|_, rows| {
        let difference: Vec<f32> =
            rows.iter().flat_map(|row| row.weights.iter().zip(row.values.iter()).map(|(w, v)| w - v)).collect();
        let mut gradients = hessian.times(&difference);
        // All rows of a task take a step before the next, for they read the same part of the Hessian.
        for _ in 0..SWEEPS {
            for g in 0..groups {
                for (row, gradient) in rows.iter_mut().zip(gradients.chunks_exact_mut(n)) {
                    row.refit(grid, hessian, g, gradient);
                }
            }
            for j in 0..n {
                for (row, gradient) in rows.iter_mut().zip(gradients.chunks_exact_mut(n)) {
                    row.recode(grid, hessian, j, gradient);
                }
            }
        }
    });
}

struct Row<'a> {
    values: &'a mut [f32],
    scales: &'a mut [Scale],
    weights: &'a [f32],
}

impl Row<'_> {
    /// Sets the scale of group `g` to the best for all codes. `gradient` is `H · (weights − values)`, half of that of the error, downwards.
    fn refit(&mut self, grid: &Grid, hessian: &Hessian, g: usize, gradient: &mut [f32]) {
        let (first, of) = (g * grid.group, self.scales[g]);
        let end = self.values.len().min(first + grid.group);
        let values = &mut self.values[first..end];
        let codes: Vec<f32> = values.iter().map(|&value| grid.code(value, of) - of.zero).collect();
        let slope = dot(&codes, &gradient[first..end]);
        let curvature: f32 =
            codes.iter().zip(first..end).map(|(code, j)| code * dot(&codes, &hessian.row(j)[first..end])).sum();
        if curvature <= 0.0 {
            return;
        }
        let scale = grid.stored(of.scale + slope / curvature);
        let step = scale - of.scale;
        // Rounded to what files hold, a step may lead uphill.
        if step != 0.0 && step * (step * curvature - 2.0 * slope) < 0.0 {
            self.scales[g].scale = scale;
            for ((value, code), j) in values.iter_mut().zip(&codes).zip(first..end) {
                *value = code * scale;
                descend(gradient, hessian.row(j), step * code);
            }
        }
    }

    /// Sets the code of column `j` to the best beside all others.
    fn recode(&mut self, grid: &Grid, hessian: &Hessian, j: usize, gradient: &mut [f32]) {
        let products = hessian.row(j);
        let wanted = self.values[j] + gradient[j] / products[j];
        let value = grid.round(wanted, self.scales[j / grid.group]);
        let step = value - self.values[j];
        if step != 0.0 && step * (step * products[j] - 2.0 * gradient[j]) < 0.0 {
            self.values[j] = value;
            descend(gradient, products, step);
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
