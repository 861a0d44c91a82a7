//! Softmax in portable Rust, with the exponential of the standard library.

/// # Safety
/// None: unsafe only to fit the table.
pub(crate) unsafe fn softmax_f32_scalar(x: &mut [f32]) {
    let mut max = f32::NEG_INFINITY;
    for &v in &*x {
        if v > max || v.is_nan() {
            max = v;
        }
    }
    let mut sum = 0.0f64;
    for v in x.iter_mut() {
        *v = (*v - max).exp();
        sum += f64::from(*v);
    }
    for v in x {
        *v = (f64::from(*v) / sum) as f32;
    }
}

/// The largest value that is no NaN; −∞ for none.
///
/// # Safety
/// None: unsafe only to fit the table.
pub(crate) unsafe fn max_ignoring_nan_f32_scalar(x: &[f32]) -> f32 {
    x.iter().fold(f32::NEG_INFINITY, |best, &v| if v > best { v } else { best })
}
