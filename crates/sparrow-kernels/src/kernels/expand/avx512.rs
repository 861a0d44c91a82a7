//! `expand` with AVX-512: of 32 bits with its foundation, of fewer with VBMI2.

use crate::dtype::layout::MIDDLE;
use crate::rows::expand::Expand;
use crate::simd::avx512::{upto16, upto32};
use crate::simd::avx512_bitmap::*;
use std::arch::x86_64::*;

/// # Safety
/// See [`ExpandFn`](crate::rows::expand::ExpandFn); AVX-512.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,popcnt")]
pub(crate) unsafe fn expand_32_bits_avx512(a: &Expand) -> *const u8 {
    let mut values = a.values;
    for i in (0..a.len).step_by(16) {
        // SAFETY: i < len; the elements whose bits are set are stored, and `to` has `len`.
        unsafe {
            let near_end = a.near_end(values, 64);
            let placed = place_32_bits(a.bits::<2>(i) as u16, &mut values, near_end);
            _mm512_mask_storeu_epi32(a.to.add(4 * i).cast(), upto16(a.len - i), placed);
        }
    }
    values
}

/// # Safety
/// See [`ExpandFn`](crate::rows::expand::ExpandFn); AVX-512 with VBMI2.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi2,popcnt")]
pub(crate) unsafe fn expand_16_bits_avx512(a: &Expand) -> *const u8 {
    let mut values = a.values;
    for i in (0..a.len).step_by(32) {
        // SAFETY: as above.
        unsafe {
            let near_end = a.near_end(values, 64);
            let placed = place_16_bits(a.bits::<4>(i) as u32, &mut values, near_end);
            _mm512_mask_storeu_epi16(a.to.add(2 * i).cast(), upto32(a.len - i), placed);
        }
    }
    values
}

/// # Safety
/// See [`ExpandFn`](crate::rows::expand::ExpandFn); AVX-512 with VBMI2.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi2,popcnt")]
pub(crate) unsafe fn expand_8_bits_avx512(a: &Expand) -> *const u8 {
    let mut values = a.values;
    for i in (0..a.len).step_by(64) {
        // SAFETY: as above.
        unsafe {
            let near_end = a.near_end(values, 64);
            let placed = place_8_bits(a.bits::<8>(i), &mut values, near_end);
            _mm512_mask_storeu_epi8(a.to.add(i).cast(), upto64(a.len - i), placed);
        }
    }
    values
}

/// # Safety
/// See [`ExpandFn`](crate::rows::expand::ExpandFn); AVX-512 with VBMI2.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi2,popcnt")]
pub(crate) unsafe fn expand_4_bits_avx512(a: &Expand) -> *const u8 {
    let mut values = a.values;
    for i in (0..a.len).step_by(32) {
        // SAFETY: as above; `to` has whole blocks.
        unsafe {
            let near_end = a.near_end(values, 16);
            let placed = place_4_bits(a.bits::<4>(i) as u32, MIDDLE, &mut values, near_end);
            let high = _mm_slli_epi16::<4>(_mm256_extracti128_si256::<1>(placed));
            _mm_storeu_si128(a.to.add(i / 2).cast(), _mm_or_si128(_mm256_castsi256_si128(placed), high));
        }
    }
    values
}
