//! `dot_rows` in portable Rust.

use super::DotRows;
use crate::dtype::{BF16, F16, F32, element};

const LANES: usize = 8;

/// # Safety
/// See [`DotRowsFn`](super::DotRowsFn).
#[inline(always)]
unsafe fn dot_rows<const D: u8>(a: &DotRows) {
    for j in 0..a.rows.count {
        // SAFETY: j < count, and a row is `stride` bytes.
        let row = unsafe { std::slice::from_raw_parts(a.rows.row(j), a.rows.stride) };
        for t in 0..a.m {
            // SAFETY: t < m, so row t of x has `cols` readable elements.
            let x = unsafe { std::slice::from_raw_parts(a.x.add(t * a.x_stride), a.rows.cols) };
            let mut sums = [0.0f32; LANES];
            for (c, chunk) in x.chunks(LANES).enumerate() {
                for (lane, &value) in chunk.iter().enumerate() {
                    sums[lane] += element::<D>(row, a.rows.cols, c * LANES + lane) * value;
                }
            }
            // SAFETY: t < m and j < count, inside out.
            unsafe { *a.out.add(t * a.out_stride + j) = sums.iter().sum() };
        }
    }
}

macro_rules! kernels {
    ($($name:ident: $dtype:expr;)*) => {$(
        /// # Safety
        /// See [`DotRowsFn`](super::DotRowsFn).
        pub(crate) unsafe fn $name(a: &DotRows) {
            // SAFETY: the contract is the caller's.
            unsafe { dot_rows::<{ $dtype }>(a) }
        }
    )*};
}

kernels! {
    dot_rows_f32_scalar: F32;
    dot_rows_f16_scalar: F16;
    dot_rows_bf16_scalar: BF16;
}
