//! AVX2 loads, widened to `f32`, and sums.

use crate::dtype::{BF16, F16, code_size};
use std::arch::x86_64::*;

/// Elements of one vector.
pub(crate) const LANES: usize = 8;

/// Eight elements at `p`, any alignment.
///
/// # Safety
/// Eight elements of type `D` must be readable at `p`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) unsafe fn load<const D: u8>(p: *const u8) -> __m256 {
    // SAFETY: the caller guarantees 8 readable elements; the loads are unaligned ones.
    unsafe {
        if D == BF16 {
            let half = _mm_loadu_si128(p.cast());
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(half)))
        } else if D == F16 {
            _mm256_cvtph_ps(_mm_loadu_si128(p.cast()))
        } else {
            _mm256_loadu_ps(p.cast())
        }
    }
}

/// The first `n < 8` elements at `p`, zeros after them.
///
/// # Safety
/// `n` elements of type `D` must be readable at `p`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) unsafe fn load_part<const D: u8>(p: *const u8, n: usize) -> __m256 {
    let mut bytes = [0u8; 32];
    // SAFETY: the caller guarantees n readable elements, and n < 8 of them fit; the load then reads the copy.
    unsafe {
        std::ptr::copy_nonoverlapping(p, bytes.as_mut_ptr(), n.min(LANES) * code_size(D));
        load::<D>(bytes.as_ptr())
    }
}

/// The sum of all lanes.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn sum(v: __m256) -> f32 {
    let v = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
    let v = _mm_add_ps(v, _mm_movehl_ps(v, v));
    _mm_cvtss_f32(_mm_add_ss(v, _mm_shuffle_ps::<1>(v, v)))
}
