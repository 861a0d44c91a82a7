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
        for (row, gradient) in rows.iter_mut().zip(gradients.chunks_exact_mut(n)) {
            for _ in 0..SWEEPS {
                row.refit(grid, hessian, gradient);
                row.recode(grid, hessian, gradient);
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
    /// Sets each scale to the best for all codes. `gradient` is `H · (weights − values)`, half of that of the error, downwards.
    fn refit(&mut self, grid: &Grid, hessian: &Hessian, gradient: &mut [f32]) {
        for (g, values) in self.values.chunks_mut(grid.group).enumerate() {
            let (first, of) = (g * grid.group, self.scales[g]);
            let codes: Vec<f32> = values.iter().map(|&value| grid.code(value, of) - of.zero).collect();
            let slope: f32 = codes.iter().zip(&gradient[first..]).map(|(c, g)| c * g).sum();
            let curvature: f32 = codes
                .iter()
                .enumerate()
                .map(|(i, c)| c * codes.iter().zip(&hessian.row(first + i)[first..]).map(|(c, h)| c * h).sum::<f32>())
                .sum();
            if curvature <= 0.0 {
                continue;
            }
            let scale = grid.stored(of.scale + slope / curvature);
            let step = scale - of.scale;
            // Rounded to what files hold, a step may lead uphill.
            if step != 0.0 && step * (step * curvature - 2.0 * slope) < 0.0 {
                self.scales[g].scale = scale;
                for (i, (value, code)) in values.iter_mut().zip(&codes).enumerate() {
                    *value = code * scale;
                    descend(gradient, hessian.row(first + i), step * code);
                }
            }
        }
    }

    /// Sets each code to the best beside all others.
    fn recode(&mut self, grid: &Grid, hessian: &Hessian, gradient: &mut [f32]) {
        for j in 0..self.values.len() {
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
}

/// The gradient after a value took a step.
fn descend(gradient: &mut [f32], products: &[f32], step: f32) {
    gradient.iter_mut().zip(products).for_each(|(gradient, h)| *gradient -= step * h);
}
