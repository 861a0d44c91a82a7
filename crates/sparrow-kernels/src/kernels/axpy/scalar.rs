//! `axpy_rows` in portable Rust.

use super::AxpyRows;
use crate::dtype::{BF16, F16, F32, I4G32, I4G32Z, I4G128, I4G128Z, I8, element};

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
    axpy_rows_i4g32_scalar: I4G32;
    axpy_rows_i4g32z_scalar: I4G32Z;
    axpy_rows_i4g128_scalar: I4G128;
    axpy_rows_i4g128z_scalar: I4G128Z;
}
