//! `axpy_rows` in portable Rust.

use super::AxpyRows;
use crate::dtype::coded::SPAN;
use crate::dtype::{BF16, Coded, F16, F32, I8, element, part};

/// # Safety
/// See [`AxpyRowsFn`](super::AxpyRowsFn).
#[inline(always)]
unsafe fn axpy_rows<const D: u8>(a: &AxpyRows) {
    for j in 0..a.rows.count {
        // SAFETY: j < count, and a row is `stride` bytes.
        let row = unsafe { std::slice::from_raw_parts(a.rows.row(j), a.rows.stride) };
        for t in 0..a.m {
            // SAFETY: j < count and t < m.
            let coefficient = unsafe { a.coefficient(t, j) };
            // SAFETY: t < m, so row t of out has cols elements, and nobody else uses them.
            let out = unsafe { std::slice::from_raw_parts_mut(a.out.add(t * a.out_stride), a.cols) };
            for (c, value) in out.iter_mut().enumerate() {
                *value += coefficient * element::<D>(row, a.rows.cols, a.start + c);
            }
        }
    }
}

macro_rules! kernels {
    ($($name:ident: $dtype:expr;)*) => {$(
        /// # Safety
        /// See [`AxpyRowsFn`](super::AxpyRowsFn).
        pub(crate) unsafe fn $name(a: &AxpyRows) {
            // SAFETY: the contract is the caller's.
            unsafe { axpy_rows::<{ $dtype }>(a) }
        }
    )*};
}

kernels! {
    axpy_rows_f32_scalar: F32;
    axpy_rows_f16_scalar: F16;
    axpy_rows_bf16_scalar: BF16;
    axpy_rows_i8_scalar: I8;
}

/// # Safety
/// See [`AxpyRowsFn`](super::AxpyRowsFn).
pub(crate) unsafe fn axpy_codes_scalar<F: Coded>(a: &AxpyRows) {
    let mut values = [0.0; SPAN];
    for j in 0..a.rows.count {
        // SAFETY: j < count.
        let row = unsafe { std::slice::from_raw_parts(a.rows.row(j), F::DTYPE.row_bytes(a.rows.cols)) };
        for c in (0..a.cols).step_by(SPAN) {
            let values = &mut values[..SPAN.min(a.cols - c)];
            part(F::DTYPE, row, a.rows.cols, a.start + c, values);
            for t in 0..a.m {
                // SAFETY: j < count and t < m; row t of out has cols elements, and nobody else uses them.
                let (coefficient, out) = unsafe {
                    let out = std::slice::from_raw_parts_mut(a.out.add(t * a.out_stride + c), values.len());
                    (a.coefficient(t, j), out)
                };
                for (out, value) in out.iter_mut().zip(&*values) {
                    *out += coefficient * value;
                }
            }
        }
    }
}
