//! Error feedback (OBS): what columns do to an output when they are changed is made up for by the columns after them.

use std::ops::Range;

use sparrow::Cpu;
use sparrow_linalg::{View, ViewMut, add_product};

/// Rows that one task works on.
const ROWS: usize = 32;

/// Has `change` decide on the columns `block` of every row of `w`, `[rows, n]`, and the columns after them make up for it. `factor` is
/// the `U` of [`Hessian::inverse_factor`](super::Hessian::inverse_factor): row `j` of `U ÷ U_jj` says how the columns after `j`
/// change where a weight of column `j` does.
///
/// `change(r, row, errors)` gets row `r` and must write what each column of the block is still to be made up for, `(old − new) ÷ U_jj`,
/// to `errors`, which are zero; within the block [`make_up`] does it.
pub(crate) fn feed_back(
    cpu: &Cpu,
    w: &mut [f32],
    n: usize,
    factor: &[f32],
    block: Range<usize>,
    change: impl Fn(usize, &mut [f32], &mut [f32]) + Sync,
) {
    let (width, after) = (block.len(), n - block.end);
    cpu.compute.pool().for_chunks(w, ROWS * n, &|i, part| {
        let here = part.len() / n;
        let mut errors = vec![0.0; here * width];
        for (r, (row, errors)) in part.chunks_exact_mut(n).zip(errors.chunks_exact_mut(width)).enumerate() {
            change(i * ROWS + r, row, errors);
        }
        let errors = View::new(&errors, here, width);
        let factor = View::strided(&factor[block.start * n + block.end..], width, after, n);
        add_product(-1.0, errors, factor, ViewMut::strided(&mut part[block.end..], here, after, n));
    });
}

/// Changes the weight of column `j` of a row to `to`, the columns up to `end` making up for it, and returns what those after are to
/// make up for.
pub(crate) fn make_up(row: &mut [f32], j: usize, end: usize, to: f32, factor: &[f32]) -> f32 {
    let pivots = &factor[j * row.len()..][..end];
    let error = (row[j] - to) / pivots[j];
    row[j + 1..end].iter_mut().zip(&pivots[j + 1..]).for_each(|(w, u)| *w -= error * u);
    row[j] = to;
    error
}
