//! Our own int4 rows as codes, see [`layout`](super::layout).

use super::coded::Coded;
#[cfg(target_arch = "x86_64")]
use super::coded::{SPAN, Scales};
use super::layout::Int4;
#[cfg(target_arch = "x86_64")]
use super::layout::{BLOCK, MIDDLE};
use super::types::DType;
#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

/// Rows of the int4 type whose discriminant is `D`. Groups of 128 count as four of 32.
pub(crate) struct Int4Rows<const D: u8>;

impl<const D: u8> Coded for Int4Rows<D> {
    const DTYPE: DType = DType::ALL[D as usize];
    const GROUP: usize = 32;
    const OFFSETS: bool = false;

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
                let mut some = [0u16; 8];
                std::ptr::copy_nonoverlapping(halves, some.as_mut_ptr().cast(), 2 * count);
                _mm_loadu_si128(some.as_ptr().cast())
            };
            let mut factors = _mm256_cvtph_ps(halves);
            if int4.group == 128 {
                factors = _mm256_permutevar8x32_ps(factors, _mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1));
            }
            _mm256_store_ps(to.factors.as_mut_ptr(), factors);
        }
    }
}
