//! Our own int4 rows as codes, see [`layout`](super::layout).

use super::coded::Coded;
#[cfg(target_arch = "x86_64")]
use super::coded::{FOUR, SPAN, Scales, nibble_bytes, nibble_halves};
use super::layout::Int4;
#[cfg(target_arch = "x86_64")]
use super::layout::{BLOCK, MIDDLE};
use super::types::DType;
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

/// Shuffles that take bytes from the end of a vector to its front, from a place on, and zeros after them.
#[cfg(target_arch = "x86_64")]
static TO_FRONT: [u8; 32] = {
    let mut bytes = [0x80; 32];
    let mut i = 0;
    while i < 16 {
        bytes[i] = i as u8;
        i += 1;
    }
    bytes
};

/// Numbers of two groups of 128, for each of eight groups of 32.
#[cfg(target_arch = "x86_64")]
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn of_128(two: __m256) -> __m256 {
    _mm256_permutevar8x32_ps(two, _mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1))
}

/// Rows of the int4 type whose discriminant is `D`. Groups of 128 count as four of 32.
pub(crate) struct Int4Rows<const D: u8>;

impl<const D: u8> Coded for Int4Rows<D> {
    const DTYPE: DType = DType::ALL[D as usize];
    const GROUP: usize = 32;
    const OFFSETS: bool = false;
    const WORD_OFFSETS: bool = true;
    const BYTE_OFFSETS: bool = true;
    const APART: bool = true;
    const HALVES: bool = true;

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn codes(row: *const u8, cols: usize, span: usize, chunk: usize) -> __m256i {
        let (int4, c) = (Int4::of(D), span * SPAN + chunk * 32);
        // SAFETY: a row has whole blocks of 16 bytes, and a zero point for each group.
        unsafe {
            let bytes = _mm_loadu_si128(row.add(c / BLOCK * (BLOCK / 2)).cast());
            let zero = if int4.zero_points { *row.add(int4.zeros_at(cols) + c / int4.group) } else { MIDDLE };
            _mm256_sub_epi8(super::block::nibbles_of(bytes), _mm256_set1_epi8(zero as i8))
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn scales(row: *const u8, cols: usize, span: usize, to: &mut Scales) {
        let int4 = Int4::of(D);
        let first = span * (SPAN / int4.group);
        let count = (int4.groups(cols) - first).min(SPAN / int4.group);
        // SAFETY: the row has scales of `count` groups from `first` on.
        unsafe {
            let halves = row.add(int4.scales_at(cols) + 2 * first);
            let halves = if count == 8 {
                _mm_loadu_si128(halves.cast())
            } else {
                // The last bytes of all scales, behind codes or other scales, brought to the front; zeros after them.
                let last = _mm_loadu_si128(halves.add(2 * count).sub(16).cast());
                _mm_shuffle_epi8(last, _mm_loadu_si128(TO_FRONT.as_ptr().add(16 - 2 * count).cast()))
            };
            let mut factors = _mm256_cvtph_ps(halves);
            if int4.group == 128 {
                factors = of_128(factors);
            }
            _mm256_store_ps(to.factors.as_mut_ptr(), factors);
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn words(row: *const u8, _: usize, span: usize, chunk: usize) -> [__m256i; 2] {
        // SAFETY: a row has whole blocks of 16 bytes.
        unsafe { super::block::nibble_words(row.add((span * SPAN + chunk * 32) / BLOCK * (BLOCK / 2))) }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn word_scales(row: *const u8, cols: usize, span: usize, to: &mut Scales) {
        let int4 = Int4::of(D);
        // SAFETY: the contract is the caller's; the row has zero points of `count` groups from `first` on.
        unsafe {
            Self::scales(row, cols, span, to);
            let zeros = if int4.zero_points {
                let first = span * (SPAN / int4.group);
                let count = (int4.groups(cols) - first).min(SPAN / int4.group);
                // As of the scales.
                let last = row.add(int4.zeros_at(cols) + first + count).sub(8).cast::<u64>().read_unaligned();
                let zeros = _mm_cvtsi64_si128((last >> (64 - 8 * count)) as i64);
                let zeros = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(zeros));
                if int4.group == 128 { of_128(zeros) } else { zeros }
            } else {
                _mm256_set1_ps(f32::from(MIDDLE))
            };
            let offsets = _mm256_mul_ps(_mm256_load_ps(to.factors.as_ptr()), zeros);
            _mm256_store_ps(to.offsets.as_mut_ptr(), _mm256_xor_ps(offsets, _mm256_set1_ps(-0.0)));
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn bytes(row: *const u8, _: usize, span: usize, chunk: usize) -> __m256i {
        // SAFETY: a row has whole blocks of 16 bytes.
        let bytes = unsafe { _mm_loadu_si128(row.add((span * SPAN + chunk * 32) / BLOCK * (BLOCK / 2)).cast()) };
        super::block::nibbles_of(bytes)
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
    unsafe fn byte_pair(row: *const u8, _: usize, span: usize, pair: usize) -> __m512i {
        // SAFETY: as above.
        unsafe {
            let first = row.add((span * SPAN + pair * 64) / BLOCK * (BLOCK / 2));
            nibble_bytes(first, first.add(BLOCK / 2))
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
    unsafe fn byte_halves(row: *const u8, _: usize, span: usize, four: usize) -> [__m512i; 2] {
        // SAFETY: a row has whole blocks of 16 bytes, one after the other.
        nibble_halves(unsafe { _mm512_loadu_si512(row.add((span * SPAN + four * FOUR) / 2).cast()) })
    }

    #[cfg(target_arch = "x86_64")]
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn byte_scales(row: *const u8, cols: usize, span: usize, to: &mut Scales) {
        // SAFETY: the contract is the caller's; bytes are words.
        unsafe { Self::word_scales(row, cols, span, to) };
    }
}
