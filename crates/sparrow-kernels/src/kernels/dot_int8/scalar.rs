//! `dot_int8` in portable Rust.

use super::DotInt8;

/// # Safety
/// See [`DotInt8Fn`](super::DotInt8Fn).
pub(crate) unsafe fn dot_int8_scalar(a: &DotInt8) {
    for j in 0..a.rows.count {
        // SAFETY: j < count, and a row starts with its codes.
        let row = unsafe { std::slice::from_raw_parts(a.rows.row(j).cast::<i8>(), a.rows.cols) };
        for t in 0..a.m {
            // SAFETY: t < m, so row t of x has `cols` readable codes.
            let x = unsafe { std::slice::from_raw_parts(a.x.codes(t), a.rows.cols) };
            let sum = row.iter().zip(x).map(|(&w, &x)| i64::from(i32::from(w) * i32::from(x))).sum();
            // SAFETY: j and t are in range.
            unsafe { a.write(t, j, row.as_ptr().cast(), sum) };
        }
    }
}
