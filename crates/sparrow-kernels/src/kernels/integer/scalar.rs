//! Sums of 32-bit products in portable Rust.

/// Σ a·b, wrapping.
///
/// # Safety
/// None: unsafe only to fit the table.
pub(crate) unsafe fn dot_i32_scalar(a: &[i32], b: &[i32]) -> i64 {
    dot(a, b)
}

/// sums ← sums + a·b, wrapping.
///
/// # Safety
/// None: unsafe only to fit the table.
pub(crate) unsafe fn axpy_i32_scalar(a: i32, b: &[i32], sums: &mut [i64]) {
    axpy(a, b, sums);
}

/// The body of every tier's kernel: it vectorises where it is inlined into one with features.
#[inline(always)]
pub(super) fn dot(a: &[i32], b: &[i32]) -> i64 {
    const LANES: usize = 32;
    let mut sums = [0i64; LANES];
    let (a_chunks, a_rest) = a.as_chunks::<LANES>();
    let (b_chunks, b_rest) = b.as_chunks::<LANES>();
    for (a, b) in a_chunks.iter().zip(b_chunks) {
        for lane in 0..LANES {
            sums[lane] = sums[lane].wrapping_add(i64::from(a[lane]) * i64::from(b[lane]));
        }
    }
    let rest = a_rest.iter().zip(b_rest).map(|(&a, &b)| i64::from(a) * i64::from(b));
    sums.into_iter().chain(rest).fold(0, i64::wrapping_add)
}

/// As [`dot`].
#[inline(always)]
pub(super) fn axpy(a: i32, b: &[i32], sums: &mut [i64]) {
    for (sum, &b) in sums.iter_mut().zip(b) {
        *sum = sum.wrapping_add(i64::from(a) * i64::from(b));
    }
}
