//! `decode_codes` with AVX2.

use super::DecodeCodes;
use crate::dtype::Coded;
use crate::dtype::coded::{CHUNK, SPAN, Scales, each_chunk};
use crate::simd::avx2::values;
use std::arch::x86_64::*;

/// # Safety
/// See [`DecodeCodesFn`](super::DecodeCodesFn); AVX2.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) unsafe fn decode_codes_avx2<F: Coded>(a: &DecodeCodes) {
    let mut scales = Scales::default();
    let end = a.c + a.count;
    // SAFETY: spans and chunks start below `end`, what is not asked for of the last one is left out.
    unsafe {
        for span in a.c / SPAN..end.div_ceil(SPAN) {
            F::scales(a.row, a.cols, span, &mut scales);
            each_chunk! { (end - span * SPAN).min(SPAN).div_ceil(CHUNK), chunk => {
                let c = span * SPAN + chunk * CHUNK;
                let four = values::<F>(F::codes(a.row, a.cols, span, chunk), &scales, chunk);
                let out = a.out.add(c - a.c);
                if c + CHUNK <= end {
                    for (i, v) in four.into_iter().enumerate() {
                        _mm256_storeu_ps(out.add(8 * i), v);
                    }
                } else {
                    let mut all = [0.0f32; CHUNK];
                    for (i, v) in four.into_iter().enumerate() {
                        _mm256_storeu_ps(all.as_mut_ptr().add(8 * i), v);
                    }
                    std::ptr::copy_nonoverlapping(all.as_ptr(), out, end - c);
                }
            } }
        }
    }
}
