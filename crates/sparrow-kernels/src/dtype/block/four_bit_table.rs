//! Blocks whose codes of four bits stand for values that are not evenly spaced.

use super::format::{Block, BlockFormat, half_at, nibbles};
#[cfg(target_arch = "x86_64")]
use super::format::{half_of, halves_at, nibbles_of};
#[cfg(target_arch = "x86_64")]
use crate::dtype::coded::{Scales, nibble_bytes};
use crate::dtype::types::DType;
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

/// What the codes stand for.
const VALUES: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// 32 numbers with one scale.
pub(crate) struct IQ4_NL;

impl Block for IQ4_NL {
    const DTYPE: DType = DType::IQ4_NL;
    const FORMAT: BlockFormat = BlockFormat {
        name: "IQ4_NL",
        elements: 32,
        bytes: 18,
        decode: |block, out| {
            let scale = half_at(block, 0);
            for (out, code) in out.iter_mut().zip(nibbles(&block[2..])) {
                *out = scale * f32::from(VALUES[usize::from(code)]);
            }
        },
        encode: None,
    };
    const GROUP: usize = 32;
    const OFFSETS: bool = false;
    const BYTE_EXCESS: u8 = 128;

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn codes(block: *const u8, _: usize) -> __m256i {
        // SAFETY: the block has 16 bytes of codes.
        unsafe { looked_up(block.add(2)) }
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
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
    unsafe fn byte_pair(block: *const u8, _: usize) -> __m512i {
        // SAFETY: both blocks have 16 bytes of codes.
        unsafe { looked_up_pair(block.add(2), block.add(18 + 2)) }
    }
}

/// 256 numbers in 8 groups with scales of six bits: two high bits of all, four low bits of all, then the codes.
pub(crate) struct IQ4_XS;

impl Block for IQ4_XS {
    const DTYPE: DType = DType::IQ4_XS;
    const FORMAT: BlockFormat = BlockFormat {
        name: "IQ4_XS",
        elements: 256,
        bytes: 136,
        decode: |block, out| {
            let scale = half_at(block, 0);
            let high = u16::from_le_bytes([block[2], block[3]]);
            for (group, out) in out.chunks_exact_mut(32).enumerate() {
                let low = block[4 + group / 2] >> (4 * (group % 2)) & 0xf;
                let six = low | ((high >> (2 * group) & 3) as u8) << 4;
                let factor = scale * f32::from(six as i8 - 32);
                for (out, code) in out.iter_mut().zip(nibbles(&block[8 + 16 * group..][..16])) {
                    *out = factor * f32::from(VALUES[usize::from(code)]);
                }
            }
        },
        encode: None,
    };
    const GROUP: usize = 32;
    const OFFSETS: bool = false;
    const BYTE_EXCESS: u8 = 128;

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn codes(block: *const u8, chunk: usize) -> __m256i {
        // SAFETY: the block has 128 bytes of codes.
        unsafe { looked_up(block.add(8 + 16 * chunk)) }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn scales(block: *const u8, _: usize, to: &mut Scales) {
        // SAFETY: the caller guarantees the block.
        unsafe {
            let high = block.add(2).cast::<u16>().read_unaligned();
            let low = block.add(4).cast::<u32>().read_unaligned();
            let mut codes = [0; 8];
            for (group, code) in codes.iter_mut().enumerate() {
                *code = (low >> (4 * group) & 0xf) as i32 | i32::from(high >> (2 * group) & 3) << 4;
            }
            let codes = _mm256_cvtepi32_ps(_mm256_loadu_si256(codes.as_ptr().cast()));
            let codes = _mm256_sub_ps(codes, _mm256_set1_ps(32.0));
            _mm256_store_ps(to.factors.as_mut_ptr(), _mm256_mul_ps(half_of(block), codes));
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
    unsafe fn byte_pair(block: *const u8, chunk: usize) -> __m512i {
        // SAFETY: the block has 128 bytes of codes.
        unsafe { looked_up_pair(block.add(8 + 16 * chunk), block.add(8 + 16 * (chunk + 1))) }
    }
}

/// What 16 bytes of codes stand for.
///
/// # Safety
/// They must be readable; AVX2.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn looked_up(bytes: *const u8) -> __m256i {
    // SAFETY: the caller guarantees the bytes; the table has 16.
    unsafe {
        let table = _mm256_broadcastsi128_si256(_mm_loadu_si128(VALUES.as_ptr().cast()));
        _mm256_shuffle_epi8(table, nibbles_of(_mm_loadu_si128(bytes.cast())))
    }
}

/// What 16 bytes of codes stand for, then 16 others, all more by 128.
///
/// # Safety
/// They must be readable; AVX-512.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
unsafe fn looked_up_pair(first: *const u8, second: *const u8) -> __m512i {
    // SAFETY: the caller guarantees the bytes; the table has 16.
    unsafe {
        let table = _mm_xor_si128(_mm_loadu_si128(VALUES.as_ptr().cast()), _mm_set1_epi8(i8::MIN));
        _mm512_shuffle_epi8(_mm512_broadcast_i32x4(table), nibble_bytes(first, second))
    }
}
