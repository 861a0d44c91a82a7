//! What a block format is.

use crate::dtype::coded::Coded;
#[cfg(target_arch = "x86_64")]
use crate::dtype::coded::{CHUNK, FOUR, SPAN, Scales, signed_words};
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
    /// By how much [`words`](Self::words) are larger than codes.
    const EXCESS: u8 = 0;
    /// By how much [`bytes`](Self::bytes) are: what makes all of them positive.
    const BYTE_EXCESS: u8 = Self::EXCESS;
    /// See [`Coded`].
    const APART: bool = true;
    const HALVES: bool = false;

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

    /// The codes of 32 elements as words, see [`Coded::words`]; each is more by `EXCESS`.
    ///
    /// # Safety
    /// See [`codes`](Self::codes).
    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn words(block: *const u8, chunk: usize) -> [__m256i; 2] {
        // SAFETY: the contract is the caller's.
        unsafe { signed_words(Self::codes(block, chunk)) }
    }

    /// The codes of 32 elements, unsigned: each is more by `BYTE_EXCESS`.
    ///
    /// # Safety
    /// See [`codes`](Self::codes).
    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn bytes(block: *const u8, chunk: usize) -> __m256i {
        // SAFETY: the contract is the caller's.
        unsafe { _mm256_add_epi8(Self::codes(block, chunk), _mm256_set1_epi8(Self::BYTE_EXCESS as i8)) }
    }

    /// [`bytes`](Self::bytes) of two chunks, the second one in the same block or first of the next.
    ///
    /// # Safety
    /// See [`codes`](Self::codes), of both chunks; AVX-512.
    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
    unsafe fn byte_pair(block: *const u8, chunk: usize) -> __m512i {
        let BlockFormat { elements, bytes, .. } = Self::FORMAT;
        // SAFETY: the contract is the caller's.
        let [first, second] = unsafe {
            let next = if elements == CHUNK { (block.add(bytes), chunk) } else { (block, chunk + 1) };
            [Self::bytes(block, chunk), Self::bytes(next.0, next.1)]
        };
        _mm512_inserti64x4::<1>(_mm512_castsi256_si512(first), second)
    }

    /// [`bytes`](Self::bytes) of four chunks, which are in one block or one in each of four: see [`Coded::byte_halves`].
    ///
    /// # Safety
    /// See [`codes`](Self::codes), of all chunks; AVX-512.
    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
    unsafe fn byte_halves(block: *const u8, chunk: usize) -> [__m512i; 2] {
        let BlockFormat { elements, bytes, .. } = Self::FORMAT;
        // SAFETY: the contract is the caller's.
        let (first, second) = unsafe {
            let next = if elements == CHUNK { (block.add(2 * bytes), chunk) } else { (block, chunk + 2) };
            (Self::byte_pair(block, chunk), Self::byte_pair(next.0, next.1))
        };
        [_mm512_shuffle_i64x2::<0x88>(first, second), _mm512_shuffle_i64x2::<0xdd>(first, second)]
    }
}

/// Writes what a span's groups are worth whose codes are `excess` too many.
///
/// # Safety
/// See [`Coded::scales`].
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn scales_less<B: Block>(row: *const u8, cols: usize, span: usize, excess: u8, to: &mut Scales) {
    // SAFETY: the contract is the caller's; there are 8 or 16 groups.
    unsafe {
        <B as Coded>::scales(row, cols, span, to);
        if excess > 0 {
            let less = _mm256_set1_ps(-f32::from(excess));
            for at in (0..SPAN / B::GROUP).step_by(8) {
                let (factors, offsets) = (to.factors.as_ptr().add(at), to.offsets.as_mut_ptr().add(at));
                let offset = if B::OFFSETS { _mm256_load_ps(offsets) } else { _mm256_setzero_ps() };
                _mm256_store_ps(offsets, _mm256_fmadd_ps(_mm256_load_ps(factors), less, offset));
            }
        }
    }
}

impl<B: Block> Coded for B {
    const DTYPE: DType = B::DTYPE;
    const GROUP: usize = B::GROUP;
    const OFFSETS: bool = B::OFFSETS;
    const WORD_OFFSETS: bool = B::OFFSETS || B::EXCESS > 0;
    const BYTE_OFFSETS: bool = B::OFFSETS || B::BYTE_EXCESS > 0;
    const APART: bool = B::APART;
    const HALVES: bool = B::HALVES;

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

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn words(row: *const u8, _: usize, span: usize, chunk: usize) -> [__m256i; 2] {
        let BlockFormat { elements, bytes, .. } = B::FORMAT;
        let block = span * (SPAN / elements) + chunk * 32 / elements;
        // SAFETY: the row is whole blocks.
        unsafe { B::words(row.add(block * bytes), chunk % (elements / 32)) }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn word_scales(row: *const u8, cols: usize, span: usize, to: &mut Scales) {
        // SAFETY: the contract is the caller's.
        unsafe { scales_less::<B>(row, cols, span, B::EXCESS, to) };
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn bytes(row: *const u8, _: usize, span: usize, chunk: usize) -> __m256i {
        let BlockFormat { elements, bytes, .. } = B::FORMAT;
        let block = span * (SPAN / elements) + chunk * 32 / elements;
        // SAFETY: the row is whole blocks.
        unsafe { B::bytes(row.add(block * bytes), chunk % (elements / 32)) }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
    unsafe fn byte_pair(row: *const u8, _: usize, span: usize, pair: usize) -> __m512i {
        let BlockFormat { elements, bytes, .. } = B::FORMAT;
        let block = span * (SPAN / elements) + pair * 64 / elements;
        // SAFETY: the row is whole blocks.
        unsafe { B::byte_pair(row.add(block * bytes), 2 * pair % (elements / 32)) }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
    unsafe fn byte_halves(row: *const u8, _: usize, span: usize, four: usize) -> [__m512i; 2] {
        let BlockFormat { elements, bytes, .. } = B::FORMAT;
        let block = span * (SPAN / elements) + four * FOUR / elements;
        // SAFETY: the row is whole blocks.
        unsafe { B::byte_halves(row.add(block * bytes), 4 * four % (elements / 32)) }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn byte_scales(row: *const u8, cols: usize, span: usize, to: &mut Scales) {
        // SAFETY: the contract is the caller's.
        unsafe { scales_less::<B>(row, cols, span, B::BYTE_EXCESS, to) };
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

/// As [`nibbles`], of 16 bytes, as the words of even and of odd numbers.
///
/// # Safety
/// They must be readable; AVX2.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) unsafe fn nibble_words(bytes: *const u8) -> [__m256i; 2] {
    // SAFETY: the caller guarantees the bytes.
    let both = _mm256_broadcastsi128_si256(unsafe { _mm_loadu_si128(bytes.cast()) });
    // The upper half holds the high halves of the bytes, and above each word's lowest 12 bits what is masked away.
    let both = _mm256_srlv_epi32(both, _mm256_setr_epi32(0, 0, 0, 0, 4, 4, 4, 4));
    let mask = _mm256_set1_epi16(0xf);
    [_mm256_and_si256(both, mask), _mm256_and_si256(_mm256_srli_epi16::<8>(both), mask)]
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
    unsafe {
        let first = blocks.add(at);
        _mm256_cvtph_ps(match count {
            8 => _mm_set_epi64x(four_halves(first, bytes, [4, 5, 6, 7]), four_halves(first, bytes, [0, 1, 2, 3])),
            _ => {
                let last = count - 1;
                let low = four_halves(first, bytes, [0, 1.min(last), 2.min(last), 3.min(last)]);
                let high = four_halves(first, bytes, [4.min(last), 5.min(last), 6.min(last), 7.min(last)]);
                kept(_mm_set_epi64x(high, low), 2 * count)
            }
        })
    }
}

/// The first two binary16 numbers of each of `count <= 8` blocks of `bytes`, zeros after them.
///
/// # Safety
/// The blocks must be readable; AVX2 and F16C.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn half_pairs(blocks: *const u8, bytes: usize, count: usize) -> [__m256; 2] {
    // SAFETY: the caller guarantees the blocks.
    let (low, high) = unsafe {
        match count {
            8 => (
                _mm_set_epi64x(two_pairs(blocks, bytes, [2, 3]), two_pairs(blocks, bytes, [0, 1])),
                _mm_set_epi64x(two_pairs(blocks, bytes, [6, 7]), two_pairs(blocks, bytes, [4, 5])),
            ),
            _ => {
                let last = count - 1;
                let a = two_pairs(blocks, bytes, [0, 1.min(last)]);
                let b = two_pairs(blocks, bytes, [2.min(last), 3.min(last)]);
                let c = two_pairs(blocks, bytes, [4.min(last), 5.min(last)]);
                let d = two_pairs(blocks, bytes, [6.min(last), 7.min(last)]);
                (kept(_mm_set_epi64x(b, a), 4 * count), kept(_mm_set_epi64x(d, c), (4 * count).saturating_sub(16)))
            }
        }
    };
    let (low, high) = (_mm256_cvtph_ps(low), _mm256_cvtph_ps(high));
    // The first numbers of pairs 0, 1, 4, 5 and 2, 3, 6, 7, and the second ones.
    let first = _mm256_castps_pd(_mm256_shuffle_ps::<0b10_00_10_00>(low, high));
    let second = _mm256_castps_pd(_mm256_shuffle_ps::<0b11_01_11_01>(low, high));
    [
        _mm256_castpd_ps(_mm256_permute4x64_pd::<0b11_01_10_00>(first)),
        _mm256_castpd_ps(_mm256_permute4x64_pd::<0b11_01_10_00>(second)),
    ]
}

/// The two bytes at the start of four blocks of `bytes`. They are put together in registers: a vector loaded from numbers
/// just stored one by one would wait for them.
///
/// # Safety
/// The blocks must be readable.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn four_halves(first: *const u8, bytes: usize, [a, b, c, d]: [usize; 4]) -> i64 {
    // SAFETY: the caller guarantees the blocks.
    unsafe {
        let a = u64::from(first.add(a * bytes).cast::<u16>().read_unaligned());
        let b = u64::from(first.add(b * bytes).cast::<u16>().read_unaligned());
        let c = u64::from(first.add(c * bytes).cast::<u16>().read_unaligned());
        let d = u64::from(first.add(d * bytes).cast::<u16>().read_unaligned());
        (a | b << 16 | c << 32 | d << 48) as i64
    }
}

/// As [`four_halves`], the four bytes of two blocks.
///
/// # Safety
/// The blocks must be readable.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn two_pairs(first: *const u8, bytes: usize, [a, b]: [usize; 2]) -> i64 {
    // SAFETY: the caller guarantees the blocks.
    unsafe {
        let a = u64::from(first.add(a * bytes).cast::<u32>().read_unaligned());
        let b = u64::from(first.add(b * bytes).cast::<u32>().read_unaligned());
        (a | b << 32) as i64
    }
}

/// The first `bytes` bytes of `v`, zeros after them.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn kept(v: __m128i, bytes: usize) -> __m128i {
    let places = _mm_setr_epi8(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    _mm_and_si128(v, _mm_cmpgt_epi8(_mm_set1_epi8(bytes.min(16) as i8), places))
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
