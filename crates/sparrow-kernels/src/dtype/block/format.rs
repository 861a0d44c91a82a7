//! What a block format is.

use crate::dtype::coded::Coded;
#[cfg(target_arch = "x86_64")]
use crate::dtype::coded::{SPAN, Scales};
use crate::dtype::types::DType;
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

/// How the numbers of a block are written, as [GGML](https://github.com/ggml-org/ggml) defines it.
#[derive(Debug, Clone, Copy)]
pub struct BlockFormat {
    /// What it is called, as in `Q4_K`.
    pub name: &'static str,
    /// Numbers in a block.
    pub elements: usize,
    /// Bytes of a block.
    pub bytes: usize,
    /// Writes the numbers of one block.
    pub(super) decode: fn(block: &[u8], out: &mut [f32]),
    /// Writes a block of numbers, for formats that this crate writes.
    pub(in crate::dtype) encode: Option<EncodeBlock>,
}

/// Writes the numbers of one block.
type EncodeBlock = fn(values: &[f32], block: &mut [u8]);

/// A format as kernels see it: [`Coded`] by block.
pub(crate) trait Block {
    /// Which one.
    const DTYPE: DType;
    /// Its description; `DTYPE.block()` is the same.
    const FORMAT: BlockFormat;
    /// See [`Coded`].
    const GROUP: usize;
    const OFFSETS: bool;

    /// The codes of 32 elements, `chunk * 32` and on, of a block.
    ///
    /// # Safety
    /// The block must be readable and have them; AVX2.
    #[cfg(target_arch = "x86_64")]
    unsafe fn codes(block: *const u8, chunk: usize) -> __m256i;

    /// The scales of `count` blocks, of one span.
    ///
    /// # Safety
    /// The blocks must be readable; AVX2 and F16C.
    #[cfg(target_arch = "x86_64")]
    unsafe fn scales(blocks: *const u8, count: usize, to: &mut Scales);
}

impl<B: Block> Coded for B {
    const DTYPE: DType = B::DTYPE;
    const GROUP: usize = B::GROUP;
    const OFFSETS: bool = B::OFFSETS;

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn codes(row: *const u8, _: usize, span: usize, chunk: usize) -> __m256i {
        let BlockFormat { elements, bytes, .. } = B::FORMAT;
        let block = span * (SPAN / elements) + chunk * 32 / elements;
        // SAFETY: the row is whole blocks.
        unsafe { B::codes(row.add(block * bytes), chunk % (elements / 32)) }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn scales(row: *const u8, cols: usize, span: usize, to: &mut Scales) {
        let BlockFormat { elements, bytes, .. } = B::FORMAT;
        let count = (cols - span * SPAN).min(SPAN).div_ceil(elements);
        // SAFETY: the row is whole blocks, `count` of them in the span.
        unsafe { B::scales(row.add(span * (SPAN / elements) * bytes), count, to) }
    }
}

/// The binary16 number at `at`.
pub(super) fn half_at(block: &[u8], at: usize) -> f32 {
    half::f16::from_le_bytes([block[at], block[at + 1]]).to_f32_const()
}

/// Low halves of the bytes, then their high halves.
pub(super) fn nibbles(bytes: &[u8]) -> impl Iterator<Item = u8> + '_ {
    bytes.iter().map(|byte| byte & 0xf).chain(bytes.iter().map(|byte| byte >> 4))
}

/// As [`nibbles`], of 16 bytes.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn nibbles_of(bytes: __m128i) -> __m256i {
    let both = _mm256_set_m128i(_mm_srli_epi16::<4>(bytes), bytes);
    _mm256_and_si256(both, _mm256_set1_epi8(0xf))
}

/// The binary16 numbers `at` bytes into each of `count <= 8` blocks of `bytes`, zeros after them.
///
/// # Safety
/// The blocks must be readable; AVX2 and F16C.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn halves_at(blocks: *const u8, bytes: usize, at: usize, count: usize) -> __m256 {
    // SAFETY: the caller guarantees the blocks.
    let half = |i: usize| u64::from(unsafe { blocks.add(i * bytes + at).cast::<u16>().read_unaligned() });
    // Put together in registers: a vector loaded from numbers just stored one by one would wait for them.
    let four = |first: usize| half(first) | half(first + 1) << 16 | half(first + 2) << 32 | half(first + 3) << 48;
    let [low, high] = match count {
        8 => [four(0), four(4)],
        _ => [0, 4].map(|first| (first..count.min(first + 4)).fold(0, |all, i| all | half(i) << (16 * (i - first)))),
    };
    _mm256_cvtph_ps(_mm_set_epi64x(high as i64, low as i64))
}

/// The binary16 number at `p`.
///
/// # Safety
/// Two bytes must be readable; AVX2 and F16C.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn half_of(p: *const u8) -> __m256 {
    // SAFETY: the caller guarantees the bytes.
    _mm256_cvtph_ps(_mm_set1_epi16(unsafe { p.cast::<i16>().read_unaligned() }))
}

/// Eight bytes, unsigned, as `f32`.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn unsigned(bytes: u64) -> __m256 {
    _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_cvtsi64_si128(bytes as i64)))
}

/// Eight bytes, signed, as `f32`.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn signed(bytes: u64) -> __m256 {
    _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_cvtsi64_si128(bytes as i64)))
}

/// 32 bytes that are 0xff where a bit of `bits` is set.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn spread(bits: u32) -> __m256i {
    #[rustfmt::skip]
    let of_byte = _mm256_setr_epi8(
        0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3,
    );
    let bit = _mm256_set1_epi64x(0x8040_2010_0804_0201u64 as i64);
    let bytes = _mm256_shuffle_epi8(_mm256_set1_epi32(bits as i32), of_byte);
    _mm256_cmpeq_epi8(_mm256_and_si256(bytes, bit), bit)
}

/// Every byte of `v` shifted right, and what `mask` keeps of it.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn shifted(v: __m256i, by: usize, mask: i8) -> __m256i {
    _mm256_and_si256(_mm256_srl_epi16(v, _mm_cvtsi64_si128(by as i64)), _mm256_set1_epi8(mask))
}
