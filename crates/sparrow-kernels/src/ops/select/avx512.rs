//! Bitmaps and sums with AVX-512.

use super::scalar;
use crate::simd::avx512::LANES;
use std::arch::x86_64::*;

/// The bits of whole words, `test` giving those of one vector; the rest by the scalar tier.
macro_rules! words {
    ($values:ident, $mask:ident, $test:expr, $rest:expr) => {{
        let (chunks, tail) = $values.as_chunks::<64>();
        let (whole, last) = $mask.split_at_mut(chunks.len());
        for (word, chunk) in whole.iter_mut().zip(chunks) {
            *word = 0;
            for (i, vector) in chunk.as_chunks::<LANES>().0.iter().enumerate() {
                // SAFETY: the vector has 16 values.
                let v = unsafe { _mm512_loadu_ps(vector.as_ptr()) };
                *word |= u64::from($test(v)) << (i * LANES);
            }
        }
        scalar::mask_by(tail, last, $rest);
    }};
}

/// # Safety
/// The CPU must have AVX-512.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
pub(crate) unsafe fn mask_above_f32_avx512(scores: &[f32], threshold: f32, magnitude: bool, mask: &mut [u64]) {
    let t = _mm512_set1_ps(threshold);
    if magnitude {
        words!(scores, mask, |v| _mm512_cmp_ps_mask::<_CMP_GT_OQ>(_mm512_abs_ps(v), t), |v| v.abs() > threshold);
    } else {
        words!(scores, mask, |v| _mm512_cmp_ps_mask::<_CMP_GT_OQ>(v, t), |v| v > threshold);
    }
}

/// # Safety
/// The CPU must have AVX-512.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
pub(crate) unsafe fn mask_nonzero_f32_avx512(values: &[f32], mask: &mut [u64]) {
    let zero = _mm512_setzero_ps();
    words!(values, mask, |v| _mm512_cmp_ps_mask::<_CMP_NEQ_UQ>(v, zero), |v| v != 0.0);
}

/// # Safety
/// The CPU must have AVX-512.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
pub(crate) unsafe fn sums_f32_avx512(x: &[f32]) -> (f64, f64) {
    scalar::sums(x)
}
