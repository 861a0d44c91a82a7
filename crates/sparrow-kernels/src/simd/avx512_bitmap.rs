//! The stored elements of a bitmap put in their places, with AVX-512.
//!
//! Elements of 8 and 16 bits need VBMI2. `near_end` says that a whole vector may not be readable where the stored
//! elements are; then only those that the mask asks for are.

use super::avx512::{upto16, upto32};
use super::prefetch;
use crate::dtype::{BF16, F32, I8};
use std::arch::x86_64::*;

/// The mask of the first `n` lanes, all if there are fewer.
#[inline(always)]
pub(crate) fn upto64(n: usize) -> __mmask64 {
    if n >= 64 { __mmask64::MAX } else { (1u64 << n) - 1 }
}

/// Columns that are widened at once.
pub(crate) const STEP: usize = 32;
/// Columns whose mask fills a cache line.
pub(crate) const LINE: usize = 512;

/// The mask of [`LINE`] columns.
#[derive(Clone, Copy)]
#[repr(align(64))]
pub(crate) struct MaskLine(pub [u32; LINE / 32]);

/// The masks of some rows, `bytes` each, from column `from` on, zeros past the last; in one place, which saves the
/// registers that point to them. Those of the rows that come `next` are asked for: they may be any addresses.
///
/// # Safety
/// `from` is a multiple of [`LINE`] below the columns of the rows, whose masks must be readable; AVX-512.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
pub(crate) unsafe fn mask_lines<const R: usize>(
    bytes: usize,
    masks: [*const u8; R],
    next: [*const u8; R],
    from: usize,
) -> [MaskLine; R] {
    let mut lines = [MaskLine([0; LINE / 32]); R];
    for r in 0..R {
        prefetch(next[r].wrapping_add(from / 8), false);
        // SAFETY: the load is masked to what the row has.
        unsafe {
            let line = _mm512_maskz_loadu_epi8(upto64(bytes - from / 8), masks[r].add(from / 8).cast());
            _mm512_store_si512(lines[r].0.as_mut_ptr().cast(), line);
        }
    }
    lines
}

/// The next elements of 32 bits, put where bits are set, zeros elsewhere; `values` moves behind them.
///
/// # Safety
/// The elements must be readable, and unless `near_end` 64 bytes; AVX-512.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,popcnt")]
pub(crate) unsafe fn place_32_bits(bits: u16, values: &mut *const u8, near_end: bool) -> __m512i {
    let count = bits.count_ones() as usize;
    // SAFETY: the contract is the caller's.
    unsafe {
        let from = values.cast();
        let stored =
            if near_end { _mm512_maskz_loadu_epi32(upto16(count), from) } else { _mm512_loadu_si512(from.cast()) };
        *values = values.add(4 * count);
        _mm512_maskz_expand_epi32(bits, stored)
    }
}

/// As [`place_32_bits`] for elements of 16 bits.
///
/// # Safety
/// As [`place_32_bits`]; VBMI2.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi2,popcnt")]
pub(crate) unsafe fn place_16_bits(bits: u32, values: &mut *const u8, near_end: bool) -> __m512i {
    let count = bits.count_ones() as usize;
    // SAFETY: the contract is the caller's.
    unsafe {
        let from = values.cast();
        let stored =
            if near_end { _mm512_maskz_loadu_epi16(upto32(count), from) } else { _mm512_loadu_si512(from.cast()) };
        *values = values.add(2 * count);
        _mm512_maskz_expand_epi16(bits, stored)
    }
}

/// As [`place_32_bits`] for elements of 8 bits.
///
/// # Safety
/// As [`place_32_bits`]; VBMI2.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi2,popcnt")]
pub(crate) unsafe fn place_8_bits(bits: u64, values: &mut *const u8, near_end: bool) -> __m512i {
    let count = bits.count_ones() as usize;
    // SAFETY: the contract is the caller's.
    unsafe {
        let from = values.cast();
        let stored =
            if near_end { _mm512_maskz_loadu_epi8(upto64(count), from) } else { _mm512_loadu_si512(from.cast()) };
        *values = values.add(count);
        _mm512_maskz_expand_epi8(bits, stored)
    }
}

/// As [`place_32_bits`] for a block of 32 elements of 4 bits, which begins a byte: each in a byte of its own, `rest`
/// elsewhere.
///
/// # Safety
/// As [`place_32_bits`], 16 bytes; VBMI2.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi2,popcnt")]
pub(crate) unsafe fn place_4_bits(bits: u32, rest: u8, values: &mut *const u8, near_end: bool) -> __m256i {
    let bytes = bits.count_ones().div_ceil(2) as usize;
    // SAFETY: the contract is the caller's.
    unsafe {
        let from = *values;
        let stored =
            if near_end { _mm_maskz_loadu_epi8(upto16(bytes), from.cast()) } else { _mm_loadu_si128(from.cast()) };
        *values = values.add(bytes);
        let words = _mm256_cvtepu8_epi16(stored);
        let split = _mm256_or_si256(words, _mm256_slli_epi16::<4>(words));
        let nibbles = _mm256_and_si256(split, _mm256_set1_epi8(0xf));
        _mm256_mask_expand_epi8(_mm256_set1_epi8(rest as i8), bits, nibbles)
    }
}

/// The next [`STEP`] elements of a row, widened: bf16 even and odd ones apart, others in order; of int8 the integers.
///
/// # Safety
/// As [`place_32_bits`]; VBMI2.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi2,popcnt")]
pub(crate) unsafe fn next<const D: u8>(bits: u32, values: &mut *const u8, near_end: bool) -> [__m512; 2] {
    // SAFETY: the contract is the caller's.
    unsafe {
        if D == F32 {
            let low = place_32_bits(bits as u16, values, near_end);
            return [low, place_32_bits((bits >> 16) as u16, values, near_end)].map(|v| _mm512_castsi512_ps(v));
        }
        if D == I8 {
            let codes = _mm512_castsi512_si256(place_8_bits(bits.into(), values, near_end));
            let halves = [_mm256_castsi256_si128(codes), _mm256_extracti128_si256::<1>(codes)];
            return halves.map(|half| _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(half)));
        }
        let both = place_16_bits(bits, values, near_end);
        if D == BF16 {
            let odd = _mm512_and_si512(both, _mm512_set1_epi32(0xffff_0000u32 as i32));
            [_mm512_castsi512_ps(_mm512_slli_epi32::<16>(both)), _mm512_castsi512_ps(odd)]
        } else {
            [_mm512_castsi512_si256(both), _mm512_extracti64x4_epi64::<1>(both)].map(|half| _mm512_cvtph_ps(half))
        }
    }
}
