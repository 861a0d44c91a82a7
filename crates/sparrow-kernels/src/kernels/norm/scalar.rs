//! Normalisation in portable Rust.

/// # Safety
/// None: unsafe only to fit the table.
pub(crate) unsafe fn rms_norm_f32_scalar(x: &[f32], weight: &[f32], offset: f32, eps: f32, out: &mut [f32]) {
    let squares: f64 = x.iter().map(|&v| f64::from(v) * f64::from(v)).sum();
    let scale = 1.0 / ((squares / x.len() as f64) as f32 + eps).sqrt();
    for ((out, &x), &w) in out.iter_mut().zip(x).zip(weight) {
        *out = x * scale * (w + offset);
    }
}

/// # Safety
/// None: unsafe only to fit the table.
pub(crate) unsafe fn layer_norm_f32_scalar(x: &[f32], weight: &[f32], bias: Option<&[f32]>, eps: f32, out: &mut [f32]) {
    let n = x.len() as f64;
    let mean = x.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
    let variance = x.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / n;
    let scale = 1.0 / (variance as f32 + eps).sqrt();
    for (i, out) in out.iter_mut().enumerate() {
        *out = (x[i] - mean as f32) * scale * weight[i] + bias.map_or(0.0, |b| b[i]);
    }
}

/// # Safety
/// None: unsafe only to fit the table.
pub(crate) unsafe fn add_assign_f32_scalar(x: &mut [f32], y: &[f32]) {
    for (x, &y) in x.iter_mut().zip(y) {
        *x += y;
    }
}
