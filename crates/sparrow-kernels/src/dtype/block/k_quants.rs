//! Blocks of 256 numbers in groups of 16 or 32, whose scales are small integers times one scale of the block.

use super::format::{Block, BlockFormat, half_at};
#[cfg(target_arch = "x86_64")]
use super::format::{half_of, shifted, signed, unsigned};
#[cfg(target_arch = "x86_64")]
use crate::dtype::coded::{Scales, halves_shifted, unsigned_words};
use crate::dtype::types::DType;
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

const ELEMENTS: usize = 256;
/// The low halves of eight bytes.
#[cfg(target_arch = "x86_64")]
const NIBBLES: u64 = 0x0f0f_0f0f_0f0f_0f0f;

/// 16 groups: two bits a code; a byte a group, of a scale and a smallest value of four bits each.
pub(crate) struct Q2_K;

impl Block for Q2_K {
    const DTYPE: DType = DType::Q2_K;
    const FORMAT: BlockFormat = BlockFormat {
        name: "Q2_K",
        elements: ELEMENTS,
        bytes: 84,
        decode: |block, out| {
            let (scales, codes) = (&block[..16], &block[16..80]);
            let (scale, least) = (half_at(block, 80), half_at(block, 82));
            for (group, out) in out.chunks_exact_mut(16).enumerate() {
                let (factor, offset) = (scale * f32::from(scales[group] & 0xf), least * f32::from(scales[group] >> 4));
                for (out, code) in out.iter_mut().zip(two_bits(codes, group)) {
                    *out = factor * f32::from(code) - offset;
                }
            }
        },
        encode: None,
    };
    const GROUP: usize = 16;
    const OFFSETS: bool = true;

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn codes(block: *const u8, chunk: usize) -> __m256i {
        // SAFETY: the block has 64 bytes of codes.
        let bytes = unsafe { _mm256_loadu_si256(block.add(16 + chunk / 4 * 32).cast()) };
        shifted(bytes, chunk % 4 * 2, 3)
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn scales(block: *const u8, _: usize, to: &mut Scales) {
        // SAFETY: the caller guarantees the block.
        unsafe {
            let (scale, least) = (half_of(block.add(80)), half_of(block.add(82)));
            for half in 0..2 {
                let bytes = block.add(8 * half).cast::<u64>().read_unaligned();
                let (low, high) = (bytes & NIBBLES, bytes >> 4 & NIBBLES);
                let offsets = _mm256_xor_ps(_mm256_mul_ps(least, unsigned(high)), _mm256_set1_ps(-0.0));
                _mm256_store_ps(to.factors.as_mut_ptr().add(8 * half), _mm256_mul_ps(scale, unsigned(low)));
                _mm256_store_ps(to.offsets.as_mut_ptr().add(8 * half), offsets);
            }
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn words(block: *const u8, chunk: usize) -> [__m256i; 2] {
        // SAFETY: the contract is the caller's; the codes are not negative.
        unsafe { unsigned_words(Self::codes(block, chunk)) }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
    unsafe fn byte_pair(block: *const u8, chunk: usize) -> __m512i {
        // SAFETY: the block has 64 bytes of codes.
        let bytes = unsafe { _mm256_loadu_si256(block.add(16 + chunk / 4 * 32).cast()) };
        let by = (chunk % 4 * 2) as i64;
        halves_shifted(_mm512_broadcast_i64x4(bytes), [by, by + 2], 3)
    }
}

/// 16 groups: three bits a code, the highest apart and inverted; signed scales of six bits.
pub(crate) struct Q3_K;

impl Block for Q3_K {
    const DTYPE: DType = DType::Q3_K;
    const FORMAT: BlockFormat = BlockFormat {
        name: "Q3_K",
        elements: ELEMENTS,
        bytes: 110,
        decode: |block, out| {
            let (high, codes, scales) = (&block[..32], &block[32..96], &block[96..108]);
            let scale = half_at(block, 108);
            for (group, out) in out.chunks_exact_mut(16).enumerate() {
                let low = scales[group % 8] >> (4 * (group / 8)) & 0xf;
                let top = scales[8 + group % 4] >> (2 * (group / 4)) & 3;
                let factor = scale * f32::from((low | top << 4) as i8 - 32);
                let (first, bit) = (group % 2 * 16, group / 2);
                for (i, (out, code)) in out.iter_mut().zip(two_bits(codes, group)).enumerate() {
                    let missing = (high[first + i] >> bit & 1) ^ 1;
                    *out = factor * f32::from(code as i8 - (missing << 2) as i8);
                }
            }
        },
        encode: None,
    };
    const GROUP: usize = 16;
    const OFFSETS: bool = false;
    const EXCESS: u8 = 4;

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn codes(block: *const u8, chunk: usize) -> __m256i {
        // SAFETY: the contract is the caller's.
        unsafe { _mm256_sub_epi8(three_bits_of(block, chunk), _mm256_set1_epi8(4)) }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn scales(block: *const u8, _: usize, to: &mut Scales) {
        // SAFETY: the caller guarantees the block.
        unsafe {
            let low = block.add(96).cast::<u64>().read_unaligned();
            let high = u64::from(block.add(104).cast::<u32>().read_unaligned());
            let high = high | high << 32;
            let scale = half_of(block.add(108));
            for (half, low) in [low & NIBBLES, low >> 4 & NIBBLES].into_iter().enumerate() {
                // Groups 4 apart take pairs of bits 2 apart.
                let [even, odd] = [4 * half, 4 * half + 2].map(|shift| high >> shift & 0x0303_0303_0303_0303);
                let top = even & 0xffff_ffff | odd & !0xffff_ffff;
                let codes = _mm256_sub_ps(unsigned(low | top << 4), _mm256_set1_ps(32.0));
                _mm256_store_ps(to.factors.as_mut_ptr().add(8 * half), _mm256_mul_ps(scale, codes));
            }
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn words(block: *const u8, chunk: usize) -> [__m256i; 2] {
        // SAFETY: the contract is the caller's.
        unsafe { unsigned_words(three_bits_of(block, chunk)) }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
    unsafe fn byte_pair(block: *const u8, chunk: usize) -> __m512i {
        // SAFETY: the block has 32 bytes of highest bits and 64 of codes.
        let [low, high] = unsafe { [32 + chunk / 4 * 32, 0].map(|at| _mm256_loadu_si256(block.add(at).cast())) };
        let by = (chunk % 4 * 2) as i64;
        let low = halves_shifted(_mm512_broadcast_i64x4(low), [by, by + 2], 3);
        with_bit(low, high, chunk, 1 << 2)
    }
}

/// 8 groups: four bits a code; scales and smallest values of six bits each.
pub(crate) struct Q4_K;

impl Block for Q4_K {
    const DTYPE: DType = DType::Q4_K;
    const FORMAT: BlockFormat = BlockFormat {
        name: "Q4_K",
        elements: ELEMENTS,
        bytes: 144,
        decode: |block, out| {
            let codes = &block[16..];
            for (group, out) in out.chunks_exact_mut(32).enumerate() {
                let (factor, offset) = six_bit_pair(block, group);
                for (out, code) in out.iter_mut().zip(four_bits(codes, group)) {
                    *out = factor * f32::from(code) - offset;
                }
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
    unsafe fn codes(block: *const u8, chunk: usize) -> __m256i {
        // SAFETY: the block has 128 bytes of codes.
        let bytes = unsafe { _mm256_loadu_si256(block.add(16 + chunk / 2 * 32).cast()) };
        shifted(bytes, chunk % 2 * 4, 0xf)
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn scales(block: *const u8, _: usize, to: &mut Scales) {
        // SAFETY: the caller guarantees the block.
        unsafe { six_bit_pairs(block, to) };
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn words(block: *const u8, chunk: usize) -> [__m256i; 2] {
        // SAFETY: the contract is the caller's; the codes are not negative.
        unsafe { unsigned_words(Self::codes(block, chunk)) }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
    unsafe fn byte_pair(block: *const u8, chunk: usize) -> __m512i {
        // SAFETY: the block has 128 bytes of codes.
        let bytes = unsafe { _mm256_loadu_si256(block.add(16 + chunk / 2 * 32).cast()) };
        halves_shifted(_mm512_broadcast_i64x4(bytes), [0, 4], 0xf)
    }
}

/// As [`Q4_K`], with a fifth bit of each code.
pub(crate) struct Q5_K;

impl Block for Q5_K {
    const DTYPE: DType = DType::Q5_K;
    const FORMAT: BlockFormat = BlockFormat {
        name: "Q5_K",
        elements: ELEMENTS,
        bytes: 176,
        decode: |block, out| {
            let (high, codes) = (&block[16..48], &block[48..]);
            for (group, out) in out.chunks_exact_mut(32).enumerate() {
                let (factor, offset) = six_bit_pair(block, group);
                for ((out, low), high) in out.iter_mut().zip(four_bits(codes, group)).zip(high) {
                    *out = factor * f32::from(low | (high >> group & 1) << 4) - offset;
                }
            }
        },
        encode: None,
    };
    const GROUP: usize = 32;
    const OFFSETS: bool = true;

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn codes(block: *const u8, chunk: usize) -> __m256i {
        // SAFETY: the block has 32 bytes of highest bits and 128 of the rest.
        unsafe {
            let low = shifted(_mm256_loadu_si256(block.add(48 + chunk / 2 * 32).cast()), chunk % 2 * 4, 0xf);
            let high = shifted(_mm256_loadu_si256(block.add(16).cast()), chunk, 1);
            _mm256_or_si256(low, _mm256_slli_epi16::<4>(high))
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn scales(block: *const u8, _: usize, to: &mut Scales) {
        // SAFETY: the caller guarantees the block.
        unsafe { six_bit_pairs(block, to) };
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn words(block: *const u8, chunk: usize) -> [__m256i; 2] {
        // SAFETY: the contract is the caller's; the codes are not negative.
        unsafe { unsigned_words(Self::codes(block, chunk)) }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
    unsafe fn byte_pair(block: *const u8, chunk: usize) -> __m512i {
        // SAFETY: the block has 32 bytes of highest bits and 128 of the rest.
        let [low, high] = unsafe { [48 + chunk / 2 * 32, 16].map(|at| _mm256_loadu_si256(block.add(at).cast())) };
        with_bit(halves_shifted(_mm512_broadcast_i64x4(low), [0, 4], 0xf), high, chunk, 1 << 4)
    }
}

/// 16 groups: six bits a code, the value less 32; signed scales of eight bits.
pub(crate) struct Q6_K;

impl Block for Q6_K {
    const DTYPE: DType = DType::Q6_K;
    const FORMAT: BlockFormat = BlockFormat {
        name: "Q6_K",
        elements: ELEMENTS,
        bytes: 210,
        decode: |block, out| {
            let (low, high, scales) = (&block[..128], &block[128..192], &block[192..208]);
            let scale = half_at(block, 208);
            for (group, out) in out.chunks_exact_mut(16).enumerate() {
                let factor = scale * f32::from(scales[group] as i8);
                // Of every 128 numbers, those 64 apart share a byte of low bits, and those 32 apart one of high bits.
                let (half, within) = (group / 8, group % 8);
                let (part, first) = (within / 2, within % 2 * 16);
                let low = &low[half * 64 + part % 2 * 32 + first..];
                let high = &high[half * 32 + first..];
                for (out, (low, high)) in out.iter_mut().zip(low.iter().zip(high)) {
                    let code = low >> (4 * (part / 2)) & 0xf | (high >> (2 * part) & 3) << 4;
                    *out = factor * f32::from(code as i8 - 32);
                }
            }
        },
        encode: None,
    };
    const GROUP: usize = 16;
    const OFFSETS: bool = false;
    const EXCESS: u8 = 32;

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn codes(block: *const u8, chunk: usize) -> __m256i {
        // SAFETY: the contract is the caller's.
        unsafe { _mm256_sub_epi8(six_bits_of(block, chunk), _mm256_set1_epi8(32)) }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn scales(block: *const u8, _: usize, to: &mut Scales) {
        // SAFETY: the caller guarantees the block.
        unsafe {
            let scale = half_of(block.add(208));
            for half in 0..2 {
                let factors = signed(block.add(192 + 8 * half).cast::<u64>().read_unaligned());
                _mm256_store_ps(to.factors.as_mut_ptr().add(8 * half), _mm256_mul_ps(scale, factors));
            }
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn words(block: *const u8, chunk: usize) -> [__m256i; 2] {
        // SAFETY: the contract is the caller's.
        unsafe { unsigned_words(six_bits_of(block, chunk)) }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
    unsafe fn byte_pair(block: *const u8, chunk: usize) -> __m512i {
        let (half, part) = (chunk / 4, chunk % 4);
        // SAFETY: the block has 128 bytes of low bits and 64 of high ones.
        let (low, high) = unsafe {
            let high = _mm256_loadu_si256(block.add(128 + half * 32).cast());
            (_mm512_loadu_si512(block.add(half * 64).cast()), _mm512_broadcast_i64x4(high))
        };
        // The lower half takes the bits below those that the upper half takes.
        let high = if part == 0 {
            _mm512_sllv_epi64(high, _mm512_setr_epi64(4, 4, 4, 4, 2, 2, 2, 2))
        } else {
            _mm512_srlv_epi64(high, _mm512_setr_epi64(0, 0, 0, 0, 2, 2, 2, 2))
        };
        let low = if part == 0 { low } else { _mm512_srli_epi64::<4>(low) };
        let low = _mm512_and_si512(low, _mm512_set1_epi8(0xf));
        _mm512_or_si512(low, _mm512_and_si512(high, _mm512_set1_epi8(0x30)))
    }
}

/// Codes of two chunks, `bit` more where bit number `chunk` of `high`, or in the upper half the next one, is set.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
fn with_bit(codes: __m512i, high: __m256i, chunk: usize, bit: i8) -> __m512i {
    let (first, second) = (_mm256_set1_epi8(1 << chunk), _mm256_set1_epi8((2 << chunk) as i8));
    let of_halves = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(first), second);
    let set = _mm512_test_epi8_mask(_mm512_broadcast_i64x4(high), of_halves);
    _mm512_mask_add_epi8(codes, set, codes, _mm512_set1_epi8(bit))
}

/// The codes of a chunk of a [`Q6_K`] block, which are not negative yet.
///
/// # Safety
/// The block must be readable; AVX2.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn six_bits_of(block: *const u8, chunk: usize) -> __m256i {
    let (half, part) = (chunk / 4, chunk % 4);
    // SAFETY: the block has 128 bytes of low bits and 64 of high ones.
    unsafe {
        let low = _mm256_loadu_si256(block.add(half * 64 + part % 2 * 32).cast());
        let high = _mm256_loadu_si256(block.add(128 + half * 32).cast());
        let (low, high) = (shifted(low, part / 2 * 4, 0xf), shifted(high, part * 2, 3));
        _mm256_or_si256(low, _mm256_slli_epi16::<4>(high))
    }
}

/// The codes of a chunk of a [`Q3_K`] block, four too many: the highest bit is there where it is not missing.
///
/// # Safety
/// The block must be readable; AVX2.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn three_bits_of(block: *const u8, chunk: usize) -> __m256i {
    // SAFETY: the block has 32 bytes of highest bits and 64 of codes.
    unsafe {
        let low = shifted(_mm256_loadu_si256(block.add(32 + chunk / 4 * 32).cast()), chunk % 4 * 2, 3);
        let high = shifted(_mm256_loadu_si256(block.cast()), chunk, 1);
        _mm256_or_si256(low, _mm256_slli_epi16::<2>(high))
    }
}

/// The codes of a group of 16: of every 128 numbers, those 32 apart share a byte.
fn two_bits(codes: &[u8], group: usize) -> impl Iterator<Item = u8> + '_ {
    let (half, within) = (group / 8, group % 8);
    let shift = 2 * (within / 2);
    codes[half * 32 + within % 2 * 16..].iter().map(move |byte| byte >> shift & 3)
}

/// The codes of a group of 32: of every 64 numbers, those 32 apart share a byte.
fn four_bits(codes: &[u8], group: usize) -> impl Iterator<Item = u8> + '_ {
    let shift = 4 * (group % 2);
    codes[group / 2 * 32..].iter().map(move |byte| byte >> shift & 0xf)
}

/// Scale and smallest value of a group of 32, from the head of a [`Q4_K`] or [`Q5_K`] block: two scales of the block, then twelve
/// bytes of eight pairs of six bits.
fn six_bit_pair(block: &[u8], group: usize) -> (f32, f32) {
    let packed = &block[4..16];
    let (scale, least) = match group {
        0..4 => (packed[group] & 0x3f, packed[group + 4] & 0x3f),
        _ => (
            packed[group + 4] & 0xf | packed[group - 4] >> 2 & 0x30,
            packed[group + 4] >> 4 | packed[group] >> 2 & 0x30,
        ),
    };
    (half_at(block, 0) * f32::from(scale), half_at(block, 2) * f32::from(least))
}

/// As [`six_bit_pair`], of all groups.
///
/// # Safety
/// The block must be readable; AVX2 and F16C.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn six_bit_pairs(block: *const u8, to: &mut Scales) {
    // SAFETY: the caller guarantees the block.
    unsafe {
        let [a, b, c] = [4, 8, 12].map(|at| u64::from(block.add(at).cast::<u32>().read_unaligned()));
        let (six, four, two) = (0x3f3f_3f3f, 0x0f0f_0f0f, 0x3030_3030);
        let scales = a & six | (c & four | a >> 2 & two) << 32;
        let least = b & six | (c >> 4 & four | b >> 2 & two) << 32;
        let factors = _mm256_mul_ps(half_of(block), unsigned(scales));
        let offsets = _mm256_mul_ps(half_of(block.add(2)), unsigned(least));
        _mm256_store_ps(to.factors.as_mut_ptr(), factors);
        _mm256_store_ps(to.offsets.as_mut_ptr(), _mm256_xor_ps(offsets, _mm256_set1_ps(-0.0)));
    }
}
