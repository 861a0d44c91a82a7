//! Conversion of stored matrices to another type.

use crate::compute::Compute;
use crate::dtype::{DType, Matrix, decode, encode};
use crate::parallel::SharedMut;

/// Multiply-adds that converting one element is worth.
const COST: usize = 8;

/// out ← the rows of `m` as `dtype` (see [`encode`]), `dtype.row_bytes(m.cols())` bytes each. Parallel.
///
/// # Panics
/// If `out.len()` is not that of all rows.
pub fn quantize(compute: &Compute, m: Matrix, dtype: DType, out: &mut [u8]) {
    let row_bytes = dtype.row_bytes(m.cols());
    assert_eq!(out.len(), m.rows() * row_bytes, "quantize: out.len() is not rows * {dtype}.row_bytes(cols)");
    let work = m.rows() * m.cols() * COST;
    let rows = m.rows().div_ceil(compute.workers.tasks(m.rows(), work));
    let to = SharedMut::new(out);
    compute.workers.parallel(m.rows().div_ceil(rows.max(1)), work, &|task| {
        let mut values = compute.workers.scratch.take(m.cols());
        for row in task * rows..m.rows().min((task + 1) * rows) {
            decode(m.dtype(), m.row(row), &mut values);
            // SAFETY: every row belongs to one task.
            encode(dtype, &values, unsafe { to.part(row * row_bytes..(row + 1) * row_bytes) });
        }
    });
}
