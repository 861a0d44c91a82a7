//! Rows of a bitmap as dense rows.

use crate::compute::Compute;
use crate::dtype::Bitmap;
use crate::parallel::SharedMut;
use crate::rows::{Expander, RowSet};

/// Multiply-adds that expanding one element is worth.
const COST: usize = 2;

impl Compute {
    /// What expands rows of bitmaps.
    pub(crate) fn expander(&self) -> Expander {
        // SAFETY: the table holds only kernels that this CPU can run.
        unsafe { Expander::new(&self.kernels.expand) }
    }
}

/// out ← the rows of `w`, dense: what was packed, bit for bit. Parallel.
///
/// # Panics
/// If `out.len()` is not `w.rows() * w.dtype().row_bytes(w.cols())`.
pub fn unpack(compute: &Compute, w: Bitmap, out: &mut [u8]) {
    let bytes = w.dtype().row_bytes(w.cols());
    assert_eq!(out.len(), w.rows() * bytes, "unpack: out.len() is not rows * {}.row_bytes(cols)", w.dtype());
    let work = w.rows() * w.cols() * COST;
    let rows = w.rows().div_ceil(compute.workers.tasks(w.rows(), work)).max(1);
    let (out, expand) = (SharedMut::new(out), compute.expander());
    compute.workers.parallel(w.rows().div_ceil(rows), work, &|task| {
        let range = task * rows..w.rows().min((task + 1) * rows);
        // SAFETY: tasks have disjoint rows.
        let to = unsafe { out.part(range.start * bytes..range.end * bytes) };
        expand.rows(&w, RowSet::Range(range), to);
    });
}
