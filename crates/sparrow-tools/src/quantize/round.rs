//! Rounding a matrix: to the nearest values, and by GPTQ (arXiv 2210.17323).

use sparrow::Cpu;

use super::grid::{Grid, Scale};
use super::options::Along;
use crate::layerwise::{feed_back, make_up};

/// Columns that are decided on before others make up for them.
const BLOCK: usize = 128;

/// A matrix `[rows, n]` in codes.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Rounded {
    /// The values that the codes stand for, `[rows, n]`.
    pub values: Vec<f32>,
    /// Of each group, where [`Grid::scale_at`] says.
    pub scales: Vec<Scale>,
}

impl Rounded {
    /// The transposed matrix, whose groups lie along inputs, of one of `n` columns whose groups lie along outputs.
    pub fn transposed(&self, n: usize) -> Rounded {
        fn transposed<T: Copy>(of: &[T], n: usize) -> Vec<T> {
            (0..n).flat_map(|j| of.iter().skip(j).step_by(n).copied()).collect()
        }
        Rounded { values: transposed(&self.values, n), scales: transposed(&self.scales, n) }
    }
}

/// The scales of least squared error, an input's error counting as its `importance`; along outputs all weights of a group have the same.
pub(super) fn scales(cpu: &Cpu, grid: &Grid, weights: &[f32], n: usize, importance: &[f32]) -> Vec<Scale> {
    let mut scales = vec![Scale { scale: 0.0, zero: 0.0 }; grid.scales(weights.len() / n, n)];
    cpu.compute.pool().for_chunks(&mut scales, grid.scales(grid.rows(), n), &|i, scales| {
        let rows = weights[i * grid.rows() * n..].chunks_exact(n).take(grid.rows());
        match grid.along {
            Along::Input => {
                for (row, scales) in rows.zip(scales.chunks_exact_mut(grid.groups(n))) {
                    let parts = row.chunks(grid.group).zip(importance.chunks(grid.group));
                    scales.iter_mut().zip(parts).for_each(|(scale, (part, by))| *scale = grid.fit(part, by));
                }
            }
            Along::Output => {
                for (j, scale) in scales.iter_mut().enumerate() {
                    let column: Vec<f32> = rows.clone().map(|row| row[j]).collect();
                    *scale = grid.fit(&column, &vec![1.0; column.len()]);
                }
            }
        }
    });
    scales
}

/// Each weight to the nearest value.
pub(super) fn to_nearest(cpu: &Cpu, grid: &Grid, mut weights: Vec<f32>, n: usize, importance: &[f32]) -> Rounded {
    let scales = scales(cpu, grid, &weights, n, importance);
    cpu.compute.pool().for_chunks(&mut weights, grid.rows() * n, &|i, part| {
        for (r, row) in part.chunks_exact_mut(n).enumerate() {
            let r = i * grid.rows() + r;
            row.iter_mut().enumerate().for_each(|(j, w)| *w = grid.round(*w, scales[grid.scale_at(r, j, n)]));
        }
    });
    Rounded { values: weights, scales }
}

/// One input after the other, in `order`, those that are still to come making up for the errors. Groups have the scales that are best
/// for the weights as they were, so that they stay what they are in the file, whatever the order. `factor` is that of [`feed_back`], of
/// the inputs in that order.
pub(super) fn with_feedback(
    cpu: &Cpu,
    grid: &Grid,
    weights: &[f32],
    importance: &[f32],
    (order, factor): (&[usize], &[f32]),
) -> Rounded {
    let n = order.len();
    let scales = scales(cpu, grid, weights, n, importance);
    let mut ordered: Vec<f32> = weights.chunks_exact(n).flat_map(|row| order.iter().map(|&j| row[j])).collect();
    for start in (0..n).step_by(BLOCK) {
        let block = start..n.min(start + BLOCK);
        let end = block.end;
        feed_back(cpu, &mut ordered, n, factor, block, |r, row, errors| {
            for (j, error) in (start..end).zip(errors) {
                let to = grid.round(row[j], scales[grid.scale_at(r, order[j], n)]);
                *error = make_up(row, j, end, to, factor);
            }
        });
    }
    let mut values = vec![0.0; ordered.len()];
    for (row, ordered) in values.chunks_exact_mut(n).zip(ordered.chunks_exact(n)) {
        order.iter().zip(ordered).for_each(|(&j, &value)| row[j] = value);
    }
    Rounded { values, scales }
}
