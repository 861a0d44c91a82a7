//! Weighted sums of rows in either form, for a few activations.

use crate::compute::Compute;
use crate::dtype::{Bitmap, Stored};
use crate::kernels::axpy::AxpyRows;
use crate::kernels::bitmap_axpy::BitmapAxpy;
use crate::rows::{BitmapRows, COLUMN_STEP, RowSet, Rows};

/// Values of a sum that stay in L1 while rows are added.
const L1_VALUES: usize = 8 * 1024;
/// Rows of a bitmap that are expanded at once: the most that a kernel adds together, so that sums are those of dense
/// rows.
const EXPANDED: usize = 8;

/// What rows are multiplied by: column `columns[j]` of `a`, or column j, for the j-th row; rows of `a` are `stride`
/// apart.
#[derive(Clone, Copy)]
pub(super) struct Coefficients<'a> {
    pub a: &'a [f32],
    pub stride: usize,
    pub columns: Option<&'a [u32]>,
    /// Whether a kernel must not round them to bf16.
    pub exact: bool,
}

impl Compute {
    /// out\[t, :\] += Σⱼ a\[t, column(j)\] · W\[row(j), :\]; `out` is `[m, n]`.
    ///
    /// # Panics
    /// If a row or a coefficient is not there, or `out` is shorter.
    pub(super) fn add_rows(&self, w: Stored, rows: RowSet, by: Coefficients, m: usize, out: &mut [f32]) {
        let count = rows.len();
        let last = by.columns.map_or(count.checked_sub(1), |columns| columns.iter().map(|&c| c as usize).max());
        assert!(m == 0 || last.is_none_or(|last| (m - 1) * by.stride + last < by.a.len()), "add_rows: coefficients");
        match w {
            Stored::Dense(w) => match rows {
                RowSet::Range(range) => {
                    self.add_dense(Rows::of(w.row_range(range), None), w.dtype() as usize, by, m, out)
                }
                RowSet::Ids(ids) => self.add_dense(Rows::of(w, Some(ids)), w.dtype() as usize, by, m, out),
            },
            Stored::Bitmap(w) => match self.kernels.bitmap_axpy[w.dtype() as usize] {
                Some(kernel) => {
                    assert!(out.len() >= m * w.cols(), "add_rows: out.len() is not m * n");
                    let args = BitmapAxpy {
                        rows: BitmapRows::of(&w, &rows),
                        a: by.a.as_ptr(),
                        a_stride: by.stride,
                        columns: by.columns.map_or(std::ptr::null(), <[u32]>::as_ptr),
                        m,
                        exact: by.exact,
                        out: out.as_mut_ptr(),
                    };
                    // SAFETY: the table holds only kernels that this CPU can run; the caller vouches for the rows, the
                    // coefficients were checked, and out is [m, n].
                    unsafe { (kernel.run)(&args) };
                }
                None => self.add_expanded(w, rows, by, m, out),
            },
        }
    }

    fn add_expanded(&self, w: Bitmap, rows: RowSet, by: Coefficients, m: usize, out: &mut [f32]) {
        let (count, expand) = (rows.len(), self.expander());
        let mut scratch = self.workers.scratch.take_aligned(EXPANDED.min(count) * w.dtype().row_bytes(w.cols()));
        for start in (0..count).step_by(EXPANDED) {
            let part = start..count.min(start + EXPANDED);
            let rows = expand.rows(&w, rows.part(part.clone()), &mut scratch);
            let by = match by.columns {
                Some(columns) => Coefficients { columns: Some(&columns[part]), ..by },
                None => Coefficients { a: &by.a[start..], ..by },
            };
            self.add_dense(Rows::of(rows, None), w.dtype() as usize, by, m, out);
        }
    }

    fn add_dense(&self, rows: Rows, dtype: usize, by: Coefficients, m: usize, out: &mut [f32]) {
        let n = rows.cols;
        assert!(out.len() >= m * n, "add_rows: out.len() is not m * n");
        let cols = (L1_VALUES / m.max(1) / COLUMN_STEP * COLUMN_STEP).max(2 * COLUMN_STEP);
        for start in (0..n).step_by(cols) {
            let args = AxpyRows {
                rows,
                start,
                cols: cols.min(n - start),
                a: by.a.as_ptr(),
                a_stride: by.stride,
                columns: by.columns.map_or(std::ptr::null(), <[u32]>::as_ptr),
                m,
                out: out[start..].as_mut_ptr(),
                out_stride: n,
            };
            // SAFETY: the table holds only kernels that this CPU can run; the caller vouches for the rows and the
            // coefficients, and the columns exist in w and in out.
            unsafe { (self.kernels.axpy_rows[dtype])(&args) };
        }
    }
}
