//! Types whose rows are small integers, *codes*, with scales: one description of each for every kernel.
//!
//! Element i is codeᵢ · factor + offset, both of its group. Kernels multiply the codes of 32 elements at a time, and
//! take the scales of 256 at a time. Int8 with one scale per row is not among them: sums over its whole rows are exact.

use super::types::DType;
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

/// Elements whose scales are read together: a whole number of groups and of blocks of every type.
pub(crate) const SPAN: usize = 256;
/// Elements whose codes are read together.
pub(crate) const CHUNK: usize = 32;

/// What turns the codes of a span into values, by group; zeros for groups beyond the row.
#[derive(Clone, Copy, Default)]
#[repr(C, align(64))]
pub(crate) struct Scales {
    pub factors: [f32; 16],
    pub offsets: [f32; 16],
}

/// A type of codes.
pub(crate) trait Coded {
    const DTYPE: DType;
    /// Elements that share a scale: 16 or 32.
    const GROUP: usize;
    /// Whether there are offsets; otherwise they are 0 and nobody looks.
    const OFFSETS: bool;
    /// As `OFFSETS`, for [`words`](Self::words).
    const WORD_OFFSETS: bool;
    /// As `OFFSETS`, for [`bytes`](Self::bytes).
    const BYTE_OFFSETS: bool;
    /// Whether [`words`](Self::words) come as those of even elements and those of odd ones; otherwise as the first 16 and the
    /// last 16.
    const APART: bool;

    /// The codes, signed bytes, of chunk number `chunk` of span number `span`. Beyond the last one of the row they are
    /// anything. Where `chunk` is a constant, so are shifts and offsets.
    ///
    /// # Safety
    /// The row must be readable and have the chunk's first element; AVX2.
    #[cfg(target_arch = "x86_64")]
    unsafe fn codes(row: *const u8, cols: usize, span: usize, chunk: usize) -> __m256i;

    /// The scales of span number `span`.
    ///
    /// # Safety
    /// The row must be readable and have the span's first element; AVX2 and F16C.
    #[cfg(target_arch = "x86_64")]
    unsafe fn scales(row: *const u8, cols: usize, span: usize, to: &mut Scales);

    /// As [`codes`](Self::codes), 16 bits each, in the order that [`APART`](Self::APART) says. All codes of a group may be
    /// larger by one number, whatever takes the least work; [`word_scales`](Self::word_scales) takes it off again.
    ///
    /// # Safety
    /// See [`codes`](Self::codes).
    #[cfg(target_arch = "x86_64")]
    unsafe fn words(row: *const u8, cols: usize, span: usize, chunk: usize) -> [__m256i; 2];

    /// As [`scales`](Self::scales), for [`words`](Self::words).
    ///
    /// # Safety
    /// See [`scales`](Self::scales).
    #[cfg(target_arch = "x86_64")]
    unsafe fn word_scales(row: *const u8, cols: usize, span: usize, to: &mut Scales);

    /// As [`codes`](Self::codes), unsigned: all codes of a group are larger by one number, which
    /// [`byte_scales`](Self::byte_scales) takes off again.
    ///
    /// # Safety
    /// See [`codes`](Self::codes).
    #[cfg(target_arch = "x86_64")]
    unsafe fn bytes(row: *const u8, cols: usize, span: usize, chunk: usize) -> __m256i;

    /// [`bytes`](Self::bytes) of chunks 2 · `pair` and 2 · `pair` + 1.
    ///
    /// # Safety
    /// See [`codes`](Self::codes), of both chunks; AVX-512.
    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
    unsafe fn byte_pair(row: *const u8, cols: usize, span: usize, pair: usize) -> __m512i {
        // SAFETY: the contract is the caller's.
        let [first, second] = unsafe { [0, 1].map(|i| Self::bytes(row, cols, span, 2 * pair + i)) };
        _mm512_inserti64x4::<1>(_mm512_castsi256_si512(first), second)
    }

    /// Whether groups have 32 elements and [`byte_halves`](Self::byte_halves) take less work than pairs.
    const HALVES: bool;

    /// [`bytes`](Self::bytes) of chunks 4 · `four` to 4 · `four` + 3: the first 16 of each, then the last 16, so that quarters of both
    /// vectors belong to one group.
    ///
    /// # Safety
    /// See [`codes`](Self::codes), of all four chunks; AVX-512.
    #[cfg(target_arch = "x86_64")]
    unsafe fn byte_halves(row: *const u8, cols: usize, span: usize, four: usize) -> [__m512i; 2];

    /// As [`scales`](Self::scales), for [`bytes`](Self::bytes).
    ///
    /// # Safety
    /// See [`scales`](Self::scales).
    #[cfg(target_arch = "x86_64")]
    unsafe fn byte_scales(row: *const u8, cols: usize, span: usize, to: &mut Scales);
}

/// Elements of a pair of chunks, whose codes fill a vector of 64 bytes.
pub(crate) const PAIR: usize = 2 * CHUNK;
/// Elements of four chunks.
pub(crate) const FOUR: usize = 4 * CHUNK;

/// The numbers of all groups of a span, zeros after them.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
pub(crate) fn of_groups(numbers: &[f32; 16], group: usize) -> __m512 {
    // In halves, as they were written: a whole vector would wait for both.
    // SAFETY: there are 16 numbers.
    let [low, high] = unsafe { [0, 8].map(|at| _mm256_loadu_ps(numbers.as_ptr().add(at))) };
    if group == 16 { _mm512_insertf32x8::<1>(_mm512_castps256_ps512(low), high) } else { _mm512_zextps256_ps512(low) }
}

/// The group of each lane of 32 bits of pair number `pair` of a span.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
pub(crate) fn groups_of_pair(pair: usize, group: usize) -> __m512i {
    let first = (pair * PAIR / group) as i32;
    let [b, c, d] = if group == 16 { [first + 1, first + 2, first + 3] } else { [first, first + 1, first + 1] };
    _mm512_setr_epi32(first, first, first, first, b, b, b, b, c, c, c, c, d, d, d, d)
}

/// The group of 32 of each lane of 32 bits of [`byte_halves`](Coded::byte_halves) number `four` of a span.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
pub(crate) fn groups_of_four(four: usize) -> __m512i {
    let [a, b, c, d] = [0, 1, 2, 3].map(|i| (4 * four) as i32 + i);
    _mm512_setr_epi32(a, a, a, a, b, b, b, b, c, c, c, c, d, d, d, d)
}

/// The low halves of 64 bytes, and their high halves.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
pub(crate) fn nibble_halves(bytes: __m512i) -> [__m512i; 2] {
    let mask = _mm512_set1_epi8(0xf);
    [_mm512_and_si512(bytes, mask), _mm512_and_si512(_mm512_srli_epi64::<4>(bytes), mask)]
}

/// 16 bytes at each of four places, `stride` apart.
///
/// # Safety
/// They must be readable; AVX-512.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
pub(crate) unsafe fn quarters(first: *const u8, stride: usize) -> __m512i {
    // SAFETY: the caller guarantees the bytes.
    unsafe {
        let all = _mm512_castsi128_si512(_mm_loadu_si128(first.cast()));
        let all = _mm512_inserti32x4::<1>(all, _mm_loadu_si128(first.add(stride).cast()));
        let all = _mm512_inserti32x4::<2>(all, _mm_loadu_si128(first.add(2 * stride).cast()));
        _mm512_inserti32x4::<3>(all, _mm_loadu_si128(first.add(3 * stride).cast()))
    }
}

/// Every byte of the lower half of `v` shifted right by `by[0]` bits, of the upper half by `by[1]`, and what `mask` keeps of it.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
pub(crate) fn halves_shifted(v: __m512i, by: [i64; 2], mask: i8) -> __m512i {
    let [a, b] = by;
    let by = _mm512_setr_epi64(a, a, a, a, b, b, b, b);
    _mm512_and_si512(_mm512_srlv_epi64(v, by), _mm512_set1_epi8(mask))
}

/// The low halves of 16 bytes, then their high halves; then those of 16 others.
///
/// # Safety
/// They must be readable; AVX-512.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
pub(crate) unsafe fn nibble_bytes(first: *const u8, second: *const u8) -> __m512i {
    // SAFETY: the caller guarantees the bytes.
    let [first, second] = unsafe { [first, second].map(|p| _mm256_broadcastsi128_si256(_mm_loadu_si128(p.cast()))) };
    let both = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(first), second);
    let by = _mm512_setr_epi64(0, 0, 4, 4, 0, 0, 4, 4);
    _mm512_and_si512(_mm512_srlv_epi64(both, by), _mm512_set1_epi8(0xf))
}

/// Signed bytes as words: the even ones and the odd ones.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn signed_words(bytes: __m256i) -> [__m256i; 2] {
    [_mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(bytes)), _mm256_srai_epi16::<8>(bytes)]
}

/// As [`signed_words`], of unsigned bytes.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn unsigned_words(bytes: __m256i) -> [__m256i; 2] {
    [_mm256_and_si256(bytes, _mm256_set1_epi16(0xff)), _mm256_srli_epi16::<8>(bytes)]
}

/// Does something for each of `$count` chunks of a span; of a whole span one after the other, with constant numbers. With
/// `constant` numbers always are, for what is kept in registers by them, and every chunk is asked for.
#[cfg(target_arch = "x86_64")]
macro_rules! each_chunk {
    (constant $count:expr, $chunk:ident => $body:block) => {{
        let count: usize = $count;
        crate::dtype::coded::each_chunk!(@ count $chunk $body, 0, 1, 2, 3, 4, 5, 6, 7)
    }};
    (@ $count:ident $chunk:ident $body:block, $($number:literal),*) => {{
        $(if $number < $count {
            let $chunk: usize = $number;
            $body
        })*
    }};
    ($count:expr, $chunk:ident => $body:block) => {
        if $count == 8 {
            crate::dtype::coded::each_chunk!(constant 8, $chunk => $body)
        } else {
            for $chunk in 0..$count $body
        }
    };
}
#[cfg(target_arch = "x86_64")]
pub(crate) use each_chunk;
