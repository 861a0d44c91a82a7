//! Rows narrowed with AVX2.

use super::lanes;
use crate::dtype::{DType, encode};
use crate::simd::avx2::LANES;
use crate::simd::vectorised;
use std::arch::x86_64::*;

vectorised! { "avx2,fma,f16c":
    encode_bf16_avx2 = lanes::encode_bf16, (values: &[f32], out: &mut [u8]);
    encode_i8_avx2 = lanes::encode_i8, (values: &[f32], out: &mut [u8]);
}

/// # Safety
/// The CPU must have the features.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) unsafe fn encode_f16_avx2(values: &[f32], out: &mut [u8]) {
    let full = values.len() / LANES * LANES;
    for (from, to) in values.chunks_exact(LANES).zip(out.chunks_exact_mut(2 * LANES)) {
        let (from, to) = (from.as_ptr(), to.as_mut_ptr());
        // SAFETY: both are a vector's worth of elements.
        unsafe { _mm_storeu_si128(to.cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(_mm256_loadu_ps(from))) };
    }
    encode(DType::F16, &values[full..], &mut out[2 * full..]);
}
