//! What GPTQ leaves to gain: with all codes in place, each scale and each code is set to what is best beside all others.

use std::ops::Range;

use sparrow::Cpu;
use sparrow_linalg::{View, ViewMut, add_product};

use super::grid::{Grid, Scale};
use super::options::Along;
use super::round::Rounded;
use crate::layerwise::Hessian;

/// Times that all scales and codes are gone through; later ones gain next to nothing.
const SWEEPS: usize = 4;

/// Columns whose gradients follow every step; those of all others follow once for so many columns, as one product of matrices.
const BLOCK: usize = 128;

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
            let mut rows = Rows { grid, hessian, n, rows: values.len() / n, values, scales, gradients };
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
    rows: usize,
    /// `[rows, n]`.
    values: &'a mut [f32],
    scales: &'a mut [Scale],
    /// `H · (weights − values)` of each row, half of that of the error, downwards.
    gradients: Vec<f32>,
}

impl Rows<'_> {
    // All rows take a step before the next, for they read the same part of the Hessian.

    fn refit_all(&mut self) {
        // Columns whose weights have one scale in a row.
        let unit = match self.grid.along {
            Along::Input => self.grid.group,
            Along::Output => 1,
        };
        for block in parts(0..self.n, BLOCK.next_multiple_of(unit)) {
            let before = self.columns(&block);
            for unit in parts(block.clone(), unit) {
                let steps = self.refit(&unit);
                self.descend(&steps, unit, block.clone());
            }
            self.descend_elsewhere(&before, block);
        }
    }

    /// Sets the scales of these columns, one in each row or one for all rows, to the best for all codes; how far the values went,
    /// `[rows, columns]`.
    fn refit(&mut self, columns: &Range<usize>) -> Vec<f32> {
        let (n, rows, width) = (self.n, self.rows, columns.len());
        let at = |r: usize| self.grid.scale_at(r, columns.start, n);
        let mut codes = self.columns(columns);
        for (r, codes) in codes.chunks_exact_mut(width).enumerate() {
            let of = self.scales[at(r)];
            codes.iter_mut().for_each(|value| *value = self.grid.code(*value, of) - of.zero);
        }
        let mut products = vec![0.0; codes.len()];
        let hessian = self.hessian.part(columns.clone(), columns.clone());
        add_product(1.0, View::new(&codes, rows, width), hessian, ViewMut::strided(&mut products, rows, width, width));
        let mut steps = vec![0.0; codes.len()];
        let each = match self.grid.along {
            Along::Input => 1,
            Along::Output => rows,
        };
        for together in parts(0..rows, each) {
            let (mut slope, mut curvature) = (0.0, 0.0);
            for r in together.clone() {
                let codes = &codes[r * width..][..width];
                slope += dot(codes, &self.gradients[r * n..][columns.clone()]);
                curvature += dot(codes, &products[r * width..][..width]);
            }
            let at = at(together.start);
            let before = self.scales[at].scale;
            if curvature <= 0.0 {
                continue;
            }
            let scale = self.grid.stored(before + slope / curvature);
            let step = scale - before;
            // Rounded to what files hold, a step may lead uphill.
            if step != 0.0 && step * (step * curvature - 2.0 * slope) < 0.0 {
                self.scales[at].scale = scale;
                for r in together {
                    for (i, j) in columns.clone().enumerate() {
                        let code = codes[r * width + i];
                        steps[r * width + i] = step * code;
                        self.values[r * n + j] = code * scale;
                    }
                }
            }
        }
        steps
    }

    /// Sets each code to the best beside all others.
    fn recode_all(&mut self) {
        let n = self.n;
        for block in parts(0..n, BLOCK) {
            let before = self.columns(&block);
            for j in block.clone() {
                let products = &self.hessian.row(j)[block.clone()];
                let curvature = products[j - block.start];
                let rows = self.values.chunks_exact_mut(n).zip(self.gradients.chunks_exact_mut(n));
                for (r, (values, gradient)) in rows.enumerate() {
                    let wanted = values[j] + gradient[j] / curvature;
                    let value = self.grid.round(wanted, self.scales[self.grid.scale_at(r, j, n)]);
                    let step = value - values[j];
                    if step != 0.0 && step * (step * curvature - 2.0 * gradient[j]) < 0.0 {
                        values[j] = value;
                        gradient[block.clone()].iter_mut().zip(products).for_each(|(g, h)| *g -= step * h);
                    }
                }
            }
            self.descend_elsewhere(&before, block);
        }
    }

    /// Some columns of all values.
    fn columns(&self, columns: &Range<usize>) -> Vec<f32> {
        self.values.chunks_exact(self.n).flat_map(|row| &row[columns.clone()]).copied().collect()
    }

    /// The gradients outside a block of columns, whose values were `before`.
    fn descend_elsewhere(&mut self, before: &[f32], block: Range<usize>) {
        let mut steps = self.columns(&block);
        steps.iter_mut().zip(before).for_each(|(value, before)| *value -= before);
        self.descend(&steps, block.clone(), 0..block.start);
        self.descend(&steps, block.clone(), block.end..self.n);
    }

    /// The gradients of the columns `to` after the values of the columns `from` took these steps.
    fn descend(&mut self, steps: &[f32], from: Range<usize>, to: Range<usize>) {
        if to.is_empty() {
            return;
        }
        let steps = View::new(steps, self.rows, from.len());
        let gradients = ViewMut::strided(&mut self.gradients[to.start..], self.rows, to.len(), self.n);
        add_product(-1.0, steps, self.hessian.part(from, to), gradients);
    }
}

/// A range in parts of `width`, the last of which may be shorter.
fn parts(range: Range<usize>, width: usize) -> impl Iterator<Item = Range<usize>> {
    range.clone().step_by(width).map(move |start| start..range.end.min(start + width))
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}
