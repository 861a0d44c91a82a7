//! Normalisation in interleaved partial sums, for the compiler to vectorise.

use crate::simd::lanes::{fma, sum_by};

#[inline(always)]
pub(super) fn rms_norm(x: &[f32], weight: &[f32], offset: f32, eps: f32, out: &mut [f32]) {
    let scale = 1.0 / (sum_by(x, |v| v * v) / x.len() as f32 + eps).sqrt();
    for ((out, &x), &w) in out.iter_mut().zip(x).zip(weight) {
        *out = x * scale * (w + offset);
    }
}

#[inline(always)]
pub(super) fn layer_norm(x: &[f32], weight: &[f32], bias: Option<&[f32]>, eps: f32, out: &mut [f32]) {
    let n = x.len() as f32;
    let mean = sum_by(x, |v| v) / n;
    let variance = sum_by(x, |v| (v - mean) * (v - mean)) / n;
    let scale = 1.0 / (variance + eps).sqrt();
    if let Some(bias) = bias {
        for (((out, &x), &w), &b) in out.iter_mut().zip(x).zip(weight).zip(bias) {
            *out = fma::<true>((x - mean) * scale, w, b);
        }
    } else {
        for ((out, &x), &w) in out.iter_mut().zip(x).zip(weight) {
            *out = (x - mean) * scale * w;
        }
    }
}

#[inline(always)]
pub(super) fn add_assign(x: &mut [f32], y: &[f32]) {
    for (x, &y) in x.iter_mut().zip(y) {
        *x += y;
    }
}
