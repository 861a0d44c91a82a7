//! `dot_codes` in portable Rust.

use super::DotCodes;
use crate::dtype::coded::SPAN;
use crate::dtype::{Coded, part};

const LANES: usize = 8;

/// # Safety
/// See [`DotCodesFn`](super::DotCodesFn).
pub(crate) unsafe fn dot_codes_scalar<F: Coded>(a: &DotCodes) {
    let cols = a.rows.cols;
    for j in 0..a.rows.count {
        // SAFETY: j < count.
        let row = unsafe { std::slice::from_raw_parts(a.rows.row(j), F::DTYPE.row_bytes(cols)) };
        for t in 0..a.m {
            // SAFETY: t < m, so row t of x has `cols` readable codes.
            let x = unsafe { std::slice::from_raw_parts(a.x.codes(t), cols) };
            let mut sums = [0.0f32; LANES];
            let mut values = [0.0; SPAN];
            for (span, x) in x.chunks(SPAN).enumerate() {
                part(F::DTYPE, row, cols, span * SPAN, &mut values[..x.len()]);
                for (values, x) in values.chunks(LANES).zip(x.chunks(LANES)) {
                    for (sum, (&w, &x)) in sums.iter_mut().zip(values.iter().zip(x)) {
                        *sum += w * f32::from(x);
                    }
                }
            }
            // SAFETY: t < m and j < count, inside out.
            unsafe { *a.out.add(t * a.out_stride + j) = sums.iter().sum::<f32>() * a.x.scale(t) };
        }
    }
}
