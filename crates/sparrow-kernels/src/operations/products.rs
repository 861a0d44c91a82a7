//! Products of rows of a weight in either form with activations.

use crate::compute::Compute;
use crate::dtype::{Bitmap, DType, Matrix, Stored};
use crate::kernels::bitmap_dot::{BitmapDotInt8, FEW_IN_REGISTERS};
use crate::kernels::dot::{DotRows, RowsDot, RowsDotKernel, arranged_bytes};
use crate::kernels::dot_codes::DotCodes;
use crate::kernels::dot_int8::DotInt8;
use crate::rows::{BitmapRows, FEW, Int16Activations, RowSet, Rows};

/// Values of x that one pass over rows covers, to stay in L2 beside them.
const X_BLOCK: usize = 128 * 1024;
/// Rows of a bitmap that are expanded at once for a few activations: a multiple of the rows of every tile.
const EXPANDED: usize = 24;
/// As [`EXPANDED`] for many activations: a panel that stays in L2.
const PANEL: usize = 64;

/// Activations `[m, k]`, at least one.
#[derive(Clone, Copy)]
pub(super) struct Activations<'a> {
    pub x: &'a [f32],
    /// The same in 16-bit integers, which quantised weights are multiplied by.
    pub int16: Option<&'a Int16Activations<'a>>,
    pub m: usize,
    /// Whether a kernel must not round x to bf16, which it does for more than [`FEW`] activations only.
    pub exact: bool,
}

/// Where products go: column j of `[m, rows]`, rows `stride` apart, for the j-th row of a weight.
#[derive(Clone, Copy)]
pub(super) struct Products {
    pub out: *mut f32,
    pub stride: usize,
}

impl Compute {
    /// out\[t, j\] = W\[row(j), :\] · x\[t, :\].
    ///
    /// # Safety
    /// The rows must be rows of `w`, `x` `[m, w.cols()]` with int16 for quantised weights, and nobody else may use these
    /// results.
    pub(super) unsafe fn products(&self, w: Stored, rows: RowSet, x: Activations, to: Products) {
        // SAFETY: the contract is the caller's.
        unsafe {
            match w {
                Stored::Dense(w) => self.dense_products(w, rows, x, to),
                Stored::Bitmap(w) => self.bitmap_products(w, rows, x, to),
            }
        }
    }

    /// Up to how many activations rows are multiplied as they are stored, not packed for the blocked product: at least [`FEW`].
    pub(super) fn few(&self, w: Stored) -> usize {
        let few = match (w, self.kernels.bitmap_dot[w.dtype() as usize], self.kernels.bitmap_dot_int8) {
            (Stored::Bitmap(_), Some(kernel), _) => kernel.few,
            (Stored::Bitmap(w), None, Some(_)) if w.dtype() == DType::I8 => FEW_IN_REGISTERS,
            (Stored::Dense(w), ..) => match w.dtype() {
                DType::I8 => self.kernels.few_int8,
                dtype if dtype.is_quantized() => self.kernels.few_codes,
                dtype => self.kernels.dot_many[dtype as usize].map_or(FEW, |kernel| kernel.few),
            },
            _ => FEW,
        };
        few.max(FEW)
    }

    /// # Safety
    /// See [`products`](Self::products).
    unsafe fn dense_products(&self, w: Matrix, rows: RowSet, x: Activations, to: Products) {
        let rows = match rows {
            RowSet::Range(range) => Rows::of(w.row_range(range), None),
            RowSet::Ids(ids) => Rows::of(w, Some(ids)),
        };
        if let Some(int16) = x.int16.filter(|_| w.dtype().is_quantized()) {
            let (x, m, out, out_stride) = (int16.rows(), x.m, to.out, to.stride);
            // SAFETY: the table holds only kernels that this CPU can run; the contract is the caller's.
            unsafe {
                match self.kernels.dot_codes[w.dtype() as usize] {
                    Some(kernel) => kernel(&DotCodes { rows, x, m, out, out_stride }),
                    None => (self.kernels.dot_int8)(&DotInt8 { rows, x, m, out, out_stride }),
                }
            }
            return;
        }
        let k = w.cols();
        if let Some(kernel) = self.kernels.dot_many[w.dtype() as usize]
            && (FEW + 1..=kernel.few).contains(&x.m)
            && !x.exact
        {
            // SAFETY: the contract is the caller's.
            unsafe { self.rearranged(kernel, rows, k, x, to) };
            return;
        }
        let tokens = if x.m <= FEW { x.m.max(1) } else { (X_BLOCK / k.max(1)).clamp(24, x.m.max(24)) };
        for t in (0..x.m).step_by(tokens) {
            let args = DotRows {
                rows,
                x: x.x[t * k..].as_ptr(),
                x_stride: k,
                m: tokens.min(x.m - t),
                out: to.out.wrapping_add(t * to.stride),
                out_stride: to.stride,
            };
            // SAFETY: as above.
            unsafe { (self.kernels.dot_rows[w.dtype() as usize])(&args) };
        }
    }

    /// Products with rows of `k` elements by a kernel that rearranges x.
    ///
    /// # Safety
    /// See [`products`](Self::products); the kernel must be one of the table's.
    unsafe fn rearranged<R: Copy>(&self, kernel: RowsDotKernel<R>, rows: R, k: usize, x: Activations, to: Products) {
        let m = x.m;
        // In equal parts, so that all are rounded or none.
        let most = if x.exact { FEW } else { kernel.tokens };
        let tokens = m.div_ceil(m.div_ceil(most));
        let mut arranged = self.workers.scratch.take_aligned(arranged_bytes(tokens, k));
        let arranged = arranged.as_mut_ptr();
        for t in (0..m).step_by(tokens) {
            let (x, out) = (x.x[t * k..].as_ptr(), to.out.wrapping_add(t * to.stride));
            // SAFETY: the table holds only kernels that this CPU can run; the scratch has room for these rows of x.
            unsafe { (kernel.run)(&RowsDot { rows, x, m: tokens.min(m - t), arranged, out, out_stride: to.stride }) };
        }
    }

    /// # Safety
    /// See [`products`](Self::products).
    unsafe fn bitmap_products(&self, w: Bitmap, rows: RowSet, x: Activations, to: Products) {
        let (m, k, dtype) = (x.m, w.cols(), w.dtype());
        if m <= self.few(Stored::Bitmap(w)) {
            let (in_int8, in_floats) = (self.kernels.bitmap_dot_int8, self.kernels.bitmap_dot[dtype as usize]);
            let here = |t: usize, most: usize| (most.min(m - t), to.out.wrapping_add(t * to.stride));
            if let (Some(int16), Some(kernel), DType::I8) = (x.int16, in_int8, dtype) {
                let rows = BitmapRows::of(&w, &rows);
                for t in (0..m).step_by(FEW) {
                    let ((m, out), x) = (here(t, FEW), int16.rows().from(t));
                    // SAFETY: the table holds only kernels that this CPU can run; the contract is the caller's.
                    unsafe { kernel(&BitmapDotInt8 { rows, x, m, out, out_stride: to.stride }) };
                }
                return;
            }
            if let Some(kernel) = in_floats {
                // SAFETY: the contract is the caller's.
                unsafe { self.rearranged(kernel, BitmapRows::of(&w, &rows), k, x, to) };
                return;
            }
        }
        let step = if m > FEW { PANEL } else { EXPANDED };
        let (count, expand) = (rows.len(), self.expander());
        let mut scratch = self.workers.scratch.take_aligned(step.min(count) * dtype.row_bytes(k));
        for start in (0..count).step_by(step) {
            let expanded = expand.rows(&w, rows.part(start..count.min(start + step)), &mut scratch);
            let to = Products { out: to.out.wrapping_add(start), ..to };
            // SAFETY: the contract is the caller's.
            unsafe { self.dense_products(expanded, RowSet::Range(0..expanded.rows()), x, to) };
        }
    }
}
