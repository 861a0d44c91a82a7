//! Blocks of 32 numbers with one scale, and a smallest value where the name ends in 1.

use super::format::{Block, BlockFormat, half_at, nibbles};
#[cfg(target_arch = "x86_64")]
use super::format::{half_pairs, halves_at, nibble_words, nibbles_of, spread};
#[cfg(target_arch = "x86_64")]
use crate::dtype::coded::{Scales, nibble_bytes, nibble_halves, quarters, unsigned_words};
use crate::dtype::types::DType;
use half::f16;
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

const ELEMENTS: usize = 32;

/// Scale, 16 bytes of two codes each: the value less 8.
pub(crate) struct Q4_0;

impl Block for Q4_0 {
    const DTYPE: DType = DType::Q4_0;
    const FORMAT: BlockFormat = BlockFormat {
        name: "Q4_0",
        elements: ELEMENTS,
        bytes: 18,
        decode: |block, out| {
            let scale = half_at(block, 0);
            for (out, code) in out.iter_mut().zip(nibbles(&block[2..])) {
                *out = scale * f32::from(code as i8 - 8);
            }
        },
        encode: None,
    };
    const GROUP: usize = 32;
    const OFFSETS: bool = false;
    const EXCESS: u8 = 8;
    const HALVES: bool = true;

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn codes(block: *const u8, _: usize) -> __m256i {
        // SAFETY: the block has 16 bytes of codes.
        let codes = unsafe { nibbles_of(_mm_loadu_si128(block.add(2).cast())) };
        _mm256_sub_epi8(codes, _mm256_set1_epi8(8))
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn scales(blocks: *const u8, count: usize, to: &mut Scales) {
        // SAFETY: the caller guarantees the blocks.
        unsafe { _mm256_store_ps(to.factors.as_mut_ptr(), halves_at(blocks, 18, 0, count)) };
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn words(block: *const u8, _: usize) -> [__m256i; 2] {
        // SAFETY: the block has 16 bytes of codes.
        unsafe { nibble_words(block.add(2)) }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
    unsafe fn byte_pair(block: *const u8, _: usize) -> __m512i {
        // SAFETY: both blocks have 16 bytes of codes.
        unsafe { nibble_bytes(block.add(2), block.add(18 + 2)) }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
    unsafe fn byte_halves(block: *const u8, _: usize) -> [__m512i; 2] {
        // SAFETY: all four blocks have 16 bytes of codes.
        nibble_halves(unsafe { quarters(block.add(2), 18) })
    }
}

/// Scale, smallest value, 16 bytes of two codes each.
pub(crate) struct Q4_1;

impl Block for Q4_1 {
    const DTYPE: DType = DType::Q4_1;
    const FORMAT: BlockFormat = BlockFormat {
        name: "Q4_1",
        elements: ELEMENTS,
        bytes: 20,
        decode: |block, out| {
            let (scale, least) = (half_at(block, 0), half_at(block, 2));
            for (out, code) in out.iter_mut().zip(nibbles(&block[4..])) {
                *out = scale * f32::from(code) + least;
            }
        },
        encode: None,
    };
    const GROUP: usize = 32;
    const OFFSETS: bool = true;
    const HALVES: bool = true;

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn codes(block: *const u8, _: usize) -> __m256i {
        // SAFETY: the block has 16 bytes of codes.
        unsafe { nibbles_of(_mm_loadu_si128(block.add(4).cast())) }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn scales(blocks: *const u8, count: usize, to: &mut Scales) {
        // SAFETY: the caller guarantees the blocks.
        unsafe {
            let [factors, offsets] = half_pairs(blocks, 20, count);
            _mm256_store_ps(to.factors.as_mut_ptr(), factors);
            _mm256_store_ps(to.offsets.as_mut_ptr(), offsets);
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn words(block: *const u8, _: usize) -> [__m256i; 2] {
        // SAFETY: the block has 16 bytes of codes.
        unsafe { nibble_words(block.add(4)) }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
    unsafe fn byte_pair(block: *const u8, _: usize) -> __m512i {
        // SAFETY: both blocks have 16 bytes of codes.
        unsafe { nibble_bytes(block.add(4), block.add(20 + 4)) }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
    unsafe fn byte_halves(block: *const u8, _: usize) -> [__m512i; 2] {
        // SAFETY: all four blocks have 16 bytes of codes.
        nibble_halves(unsafe { quarters(block.add(4), 20) })
    }
}

/// Scale, the highest bits of the 32 codes, then the rest of them as in [`Q4_0`]: the value less 16.
pub(crate) struct Q5_0;

impl Block for Q5_0 {
    const DTYPE: DType = DType::Q5_0;
    const FORMAT: BlockFormat = BlockFormat {
        name: "Q5_0",
        elements: ELEMENTS,
        bytes: 22,
        decode: |block, out| {
            let scale = half_at(block, 0);
            for (out, code) in out.iter_mut().zip(five_bits(&block[2..])) {
                *out = scale * f32::from(code as i8 - 16);
            }
        },
        encode: None,
    };
    const GROUP: usize = 32;
    const OFFSETS: bool = false;
    const EXCESS: u8 = 16;

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn codes(block: *const u8, _: usize) -> __m256i {
        // SAFETY: the block has 20 bytes of codes.
        let codes = unsafe { five_bits_of(block.add(2)) };
        _mm256_sub_epi8(codes, _mm256_set1_epi8(16))
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn scales(blocks: *const u8, count: usize, to: &mut Scales) {
        // SAFETY: the caller guarantees the blocks.
        unsafe { _mm256_store_ps(to.factors.as_mut_ptr(), halves_at(blocks, 22, 0, count)) };
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn words(block: *const u8, _: usize) -> [__m256i; 2] {
        // SAFETY: the block has 20 bytes of codes.
        unsafe { unsigned_words(five_bits_of(block.add(2))) }
    }
}

/// Scale, smallest value, the highest bits of the 32 codes, then the rest of them.
pub(crate) struct Q5_1;

impl Block for Q5_1 {
    const DTYPE: DType = DType::Q5_1;
    const FORMAT: BlockFormat = BlockFormat {
        name: "Q5_1",
        elements: ELEMENTS,
        bytes: 24,
        decode: |block, out| {
            let (scale, least) = (half_at(block, 0), half_at(block, 2));
            for (out, code) in out.iter_mut().zip(five_bits(&block[4..])) {
                *out = scale * f32::from(code) + least;
            }
        },
        encode: None,
    };
    const GROUP: usize = 32;
    const OFFSETS: bool = true;

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn codes(block: *const u8, _: usize) -> __m256i {
        // SAFETY: the block has 20 bytes of codes.
        unsafe { five_bits_of(block.add(4)) }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn scales(blocks: *const u8, count: usize, to: &mut Scales) {
        // SAFETY: the caller guarantees the blocks.
        unsafe {
            let [factors, offsets] = half_pairs(blocks, 24, count);
            _mm256_store_ps(to.factors.as_mut_ptr(), factors);
            _mm256_store_ps(to.offsets.as_mut_ptr(), offsets);
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn words(block: *const u8, _: usize) -> [__m256i; 2] {
        // SAFETY: the block has 20 bytes of codes.
        unsafe { unsigned_words(five_bits_of(block.add(4))) }
    }
}

/// Scale, 32 signed bytes.
pub(crate) struct Q8_0;

impl Block for Q8_0 {
    const DTYPE: DType = DType::Q8_0;
    const FORMAT: BlockFormat = BlockFormat {
        name: "Q8_0",
        elements: ELEMENTS,
        bytes: 34,
        decode: |block, out| {
            let scale = half_at(block, 0);
            for (out, &code) in out.iter_mut().zip(&block[2..]) {
                *out = f32::from(code as i8) * scale;
            }
        },
        encode: Some(encode_8_bits),
    };
    const GROUP: usize = 32;
    const OFFSETS: bool = false;
    const BYTE_EXCESS: u8 = 128;
    const APART: bool = false;

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn codes(block: *const u8, _: usize) -> __m256i {
        // SAFETY: the block has 32 bytes of codes.
        unsafe { _mm256_loadu_si256(block.add(2).cast()) }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn scales(blocks: *const u8, count: usize, to: &mut Scales) {
        // SAFETY: the caller guarantees the blocks.
        unsafe { _mm256_store_ps(to.factors.as_mut_ptr(), halves_at(blocks, 34, 0, count)) };
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn words(block: *const u8, _: usize) -> [__m256i; 2] {
        // SAFETY: the block has 32 bytes of codes.
        unsafe {
            let (first, last) = (_mm_loadu_si128(block.add(2).cast()), _mm_loadu_si128(block.add(18).cast()));
            [_mm256_cvtepi8_epi16(first), _mm256_cvtepi8_epi16(last)]
        }
    }
}

/// Codes of five bits: four bytes of highest bits, then nibbles.
fn five_bits(bytes: &[u8]) -> impl Iterator<Item = u8> + '_ {
    let high = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    nibbles(&bytes[4..]).enumerate().map(move |(i, low)| low | ((high >> i & 1) as u8) << 4)
}

/// As [`five_bits`].
///
/// # Safety
/// 20 bytes must be readable; AVX2.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn five_bits_of(bytes: *const u8) -> __m256i {
    // SAFETY: the caller guarantees the bytes.
    unsafe {
        let high = _mm256_and_si256(spread(bytes.cast::<u32>().read_unaligned()), _mm256_set1_epi8(16));
        _mm256_or_si256(nibbles_of(_mm_loadu_si128(bytes.add(4).cast())), high)
    }
}

/// The largest magnitude becomes 127; a value that is NaN or infinite makes the whole block NaN.
fn encode_8_bits(values: &[f32], block: &mut [u8]) {
    let largest = values.iter().fold(0.0f32, |a, v| a.max(v.abs()));
    let finite = values.iter().all(|v| v.is_finite());
    let scale = f16::from_f32(if finite { largest / 127.0 } else { f32::NAN });
    block[..2].copy_from_slice(&scale.to_le_bytes());
    // Quantised by the scale as it is stored.
    let inverse = if scale == f16::ZERO || !finite { 0.0 } else { 1.0 / scale.to_f32() };
    for (code, &v) in block[2..].iter_mut().zip(values) {
        *code = (v * inverse).round_ties_even().clamp(-127.0, 127.0) as i8 as u8;
    }
}
