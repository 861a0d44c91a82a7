//! Rounding a matrix: to the nearest values, and by GPTQ (arXiv 2210.17323).

use sparrow::Cpu;

use super::grid::{Grid, Scale};
use crate::layerwise::{feed_back, make_up};

/// Columns that are decided on before others make up for them.
const BLOCK: usize = 128;

/// Rows that one task works on.
const ROWS: usize = 16;

/// A matrix `[rows, n]` in codes.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Rounded {
    /// The values that the codes stand for, `[rows, n]`.
    pub values: Vec<f32>,
    /// Of each group, `[rows, groups]`.
    pub scales: Vec<Scale>,
}

/// The scales of least squared error, an input's error counting as its `importance`.
pub(super) fn scales(cpu: &Cpu, grid: &Grid, weights: &[f32], n: usize, importance: &[f32]) -> Vec<Scale> {
    let groups = grid.groups(n);
    let mut scales = vec![Scale { scale: 0.0, zero: 0.0 }; weights.len() / n * groups];
    cpu.compute.pool().for_chunks(&mut scales, ROWS * groups, &|i, scales| {
        for (r, scales) in scales.chunks_exact_mut(groups).enumerate() {
            let row = &weights[(i * ROWS + r) * n..][..n];
            let parts = row.chunks(grid.group).zip(importance.chunks(grid.group));
            scales.iter_mut().zip(parts).for_each(|(scale, (row, importance))| *scale = grid.fit(row, importance));
        }
    });
    scales
}

/// Each weight to the nearest value.
pub(super) fn to_nearest(cpu: &Cpu, grid: &Grid, mut weights: Vec<f32>, n: usize, importance: &[f32]) -> Rounded {
    let (groups, scales) = (grid.groups(n), scales(cpu, grid, &weights, n, importance));
    cpu.compute.pool().for_chunks(&mut weights, ROWS * n, &|i, part| {
        for (r, row) in part.chunks_exact_mut(n).enumerate() {
            let scales = &scales[(i * ROWS + r) * groups..][..groups];
            for (part, &of) in row.chunks_mut(grid.group).zip(scales) {
                part.iter_mut().for_each(|w| *w = grid.round(*w, of));
            }
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
    let (groups, scales) = (grid.groups(n), scales(cpu, grid, weights, n, importance));
    let mut ordered: Vec<f32> = weights.chunks_exact(n).flat_map(|row| order.iter().map(|&j| row[j])).collect();
    for start in (0..n).step_by(BLOCK) {
        let block = start..n.min(start + BLOCK);
        let end = block.end;
        feed_back(cpu, &mut ordered, n, factor, block, |r, row, errors| {
            let scales = &scales[r * groups..][..groups];
            for (j, error) in (start..end).zip(errors) {
                let to = grid.round(row[j], scales[order[j] / grid.group]);
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
