//! AVX-512 loads, widened to `f32`.

use crate::dtype::{BF16, F16};
use std::arch::x86_64::*;

/// Elements of one vector.
pub(crate) const LANES: usize = 16;

/// Sixteen elements at `p`, any alignment.
///
/// # Safety
/// Sixteen elements of type `D` must be readable at `p`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
pub(crate) unsafe fn load<const D: u8>(p: *const u8) -> __m512 {
    // SAFETY: the caller guarantees 16 readable elements; the loads are unaligned ones.
    unsafe {
        if D == BF16 {
            let half = _mm256_loadu_si256(p.cast());
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(half)))
        } else if D == F16 {
            _mm512_cvtph_ps(_mm256_loadu_si256(p.cast()))
        } else {
            _mm512_loadu_ps(p.cast())
        }
    }
}

/// The elements at `p` whose bit of `mask` is set, zeros elsewhere.
///
/// # Safety
/// The elements of type `D` whose bit is set must be readable at `p`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
pub(crate) unsafe fn load_masked<const D: u8>(mask: __mmask16, p: *const u8) -> __m512 {
    // SAFETY: masked loads touch only the lanes that the caller guarantees.
    unsafe {
        if D == BF16 {
            let half = _mm256_maskz_loadu_epi16(mask, p.cast());
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(half)))
        } else if D == F16 {
            _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, p.cast()))
        } else {
            _mm512_maskz_loadu_ps(mask, p.cast())
        }
    }
}

/// The mask of the first `n < 16` lanes.
#[inline(always)]
pub(crate) fn first(n: usize) -> __mmask16 {
    ((1u32 << n) - 1) as __mmask16
}
