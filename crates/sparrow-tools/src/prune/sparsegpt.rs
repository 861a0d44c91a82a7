//! SparseGPT (arXiv 2301.00774): columns are decided on from left to right, and the columns that are still to come make up for
//! what a zeroed weight did.

use sparrow::Cpu;
use sparrow_kernels::{Matrix, decode};

use super::options::Pattern;
use super::score::{Group, count, smallest};
use crate::layerwise::{feed_back, make_up};

/// Columns whose weights are chosen together.
const BLOCK: usize = 128;

/// Rows that one task decodes.
const ROWS: usize = 32;

/// The weights `[out, in]` that are left of `weights`, zeros among them: those of least `w² ÷ U_jj²` among a block's columns of
/// all rows (or in each few of a row), and those that were zero before. `factor` is that of [`feed_back`], `[in, in]`.
pub(super) fn prune(cpu: &Cpu, weights: Matrix, factor: &[f32], group: Group) -> Vec<f32> {
    let (rows, n) = (weights.rows(), weights.cols());
    let mut w = vec![0.0; rows * n];
    cpu.compute.pool().for_chunks(&mut w, ROWS * n, &|i, part| {
        for (r, row) in part.chunks_exact_mut(n).enumerate() {
            decode(weights.dtype(), weights.row(i * ROWS + r), row);
        }
    });
    // What was zero stays zero, whatever its neighbours would make of it.
    let was_zero: Vec<bool> = w.iter().map(|&w| w == 0.0).collect();
    let (width, pattern) = match group {
        Group::Pattern(pattern) => ((BLOCK / pattern.of).max(1) * pattern.of, Some(pattern)),
        Group::Matrix(_) | Group::Row(_) => (BLOCK, None),
    };
    let mut keys = Vec::new();
    for start in (0..n).step_by(width) {
        let block = start..n.min(start + width);
        let width = block.len();
        let mut dropped: Vec<bool> =
            was_zero.chunks_exact(n).flat_map(|row| row[block.clone()].iter().copied()).collect();
        if let Group::Matrix(fraction) | Group::Row(fraction) = group {
            let zeros = &dropped;
            let scores = w.chunks_exact(n).enumerate().flat_map(|(r, row)| {
                let zeros = &zeros[r * width..(r + 1) * width];
                block.clone().map(move |j| loss(row[j], factor[j * n + j], zeros[j - start]))
            });
            smallest(scores, count(fraction, rows * width), &mut keys).iter().for_each(|&i| dropped[i as usize] = true);
        }
        let dropped = &dropped;
        feed_back(cpu, &mut w, n, factor, block.clone(), |r, row, errors| {
            prune_row(row, &dropped[r * width..][..width], factor, start, pattern, errors);
        });
    }
    w
}

/// What zeroing a weight costs once the columns after it have made up for it.
fn loss(weight: f32, pivot: f32, was_zero: bool) -> f32 {
    if was_zero { 0.0 } else { (weight / pivot) * (weight / pivot) }
}

/// Zeroes the weights of one row's block that are `dropped`, and where there is a pattern those that it drops, the rest of the
/// block making up for it; `errors` gets what the columns after the block are still to make up for.
fn prune_row(
    row: &mut [f32],
    dropped: &[bool],
    factor: &[f32],
    start: usize,
    pattern: Option<Pattern>,
    errors: &mut [f32],
) {
    let (n, width) = (row.len(), dropped.len());
    let mut dropped = dropped.to_vec();
    let mut keys = Vec::new();
    for j in 0..width {
        if let Some(Pattern { keep, of }) = pattern
            && j.is_multiple_of(of)
        {
            let scores = (j..j + of).map(|k| loss(row[start + k], factor[(start + k) * (n + 1)], dropped[k]));
            smallest(scores, of - keep, &mut keys).iter().for_each(|&k| dropped[j + k as usize] = true);
        }
        if dropped[j] {
            errors[j] = make_up(row, start + j, start + width, 0.0, factor);
        }
    }
}
