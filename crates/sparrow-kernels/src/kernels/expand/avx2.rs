//! `expand` with AVX2: eight elements at a time, shuffled by what a table says of a byte of the mask.

use crate::dtype::layout::MIDDLE;
use crate::rows::expand::Expand;
use std::arch::x86_64::*;

/// For each byte of a mask, which stored element goes to each of eight places; the highest bit means none.
static PLACES: [[u8; 8]; 256] = places();

const fn places() -> [[u8; 8]; 256] {
    let mut table = [[0x80; 8]; 256];
    let mut byte = 0;
    while byte < 256 {
        let (mut bit, mut stored) = (0, 0);
        while bit < 8 {
            if byte >> bit & 1 == 1 {
                table[byte][bit] = stored;
                stored += 1;
            }
            bit += 1;
        }
        byte += 1;
    }
    table
}

/// The next eight elements of `SIZE` bytes, put where bits are set, zeros elsewhere; in the first `8 * SIZE` bytes.
///
/// # Safety
/// `8 * SIZE` bytes must be readable at `values`; AVX2.
#[inline]
#[target_feature(enable = "avx2,popcnt")]
unsafe fn place<const SIZE: usize>(bits: u8, values: *const u8) -> __m256i {
    // SAFETY: the table's entries are 8 bytes; the contract is the caller's.
    unsafe {
        let places = _mm_loadl_epi64(PLACES[usize::from(bits)].as_ptr().cast());
        match SIZE {
            1 => _mm256_castsi128_si256(_mm_shuffle_epi8(_mm_loadl_epi64(values.cast()), places)),
            2 => {
                // Twice the place, and that plus 1; saturation keeps the highest bit.
                let low = _mm_adds_epu8(places, places);
                let bytes = _mm_unpacklo_epi8(low, _mm_or_si128(low, _mm_set1_epi8(1)));
                _mm256_castsi128_si256(_mm_shuffle_epi8(_mm_loadu_si128(values.cast()), bytes))
            }
            _ => {
                let places = _mm256_cvtepi8_epi32(places);
                let stored = _mm256_permutevar8x32_epi32(_mm256_loadu_si256(values.cast()), places);
                _mm256_andnot_si256(_mm256_srai_epi32::<31>(places), stored)
            }
        }
    }
}

/// # Safety
/// See [`ExpandFn`](crate::rows::expand::ExpandFn); AVX2.
#[inline]
#[target_feature(enable = "avx2,popcnt")]
unsafe fn expand<const SIZE: usize>(a: &Expand) -> *const u8 {
    let mut values = a.values;
    for i in (0..a.len).step_by(8) {
        // SAFETY: i < len; the elements whose bits are set are stored, near the end they are copied first; `to` has
        // `len` elements.
        unsafe {
            let bits = a.bits::<1>(i) as u8;
            let bytes = bits.count_ones() as usize * SIZE;
            let placed = if a.near_end(values, 8 * SIZE) {
                let mut last = [0; 32];
                values.copy_to_nonoverlapping(last.as_mut_ptr(), bytes);
                place::<SIZE>(bits, last.as_ptr())
            } else {
                place::<SIZE>(bits, values)
            };
            values = values.add(bytes);
            let to = a.to.add(i * SIZE);
            let low = _mm256_castsi256_si128(placed);
            match SIZE {
                _ if a.len - i < 8 => {
                    let mut last = [0u8; 32];
                    _mm256_storeu_si256(last.as_mut_ptr().cast(), placed);
                    to.copy_from_nonoverlapping(last.as_ptr(), (a.len - i) * SIZE);
                }
                1 => _mm_storel_epi64(to.cast(), low),
                2 => _mm_storeu_si128(to.cast(), low),
                _ => _mm256_storeu_si256(to.cast(), placed),
            }
        }
    }
    values
}

/// # Safety
/// See [`ExpandFn`](crate::rows::expand::ExpandFn); AVX2.
#[target_feature(enable = "avx2,popcnt")]
pub(crate) unsafe fn expand_4_bits_avx2(a: &Expand) -> *const u8 {
    let mut values = a.values;
    let (low_half, middle) = (_mm_set1_epi8(0xf), _mm_set1_epi8(MIDDLE as i8));
    for i in (0..a.len).step_by(32) {
        // SAFETY: as above, of a block; `to` has whole blocks.
        unsafe {
            let bits = a.bits::<4>(i) as u32;
            let bytes = bits.count_ones().div_ceil(2) as usize;
            let mut packed = [0u8; 16];
            values.copy_to_nonoverlapping(packed.as_mut_ptr(), bytes);
            values = values.add(bytes);
            let packed = _mm_loadu_si128(packed.as_ptr().cast());
            let (even, odd) = (_mm_and_si128(packed, low_half), _mm_and_si128(_mm_srli_epi16::<4>(packed), low_half));
            // A byte for each, and room for reading eight from the last one on.
            let mut codes = [0u8; 40];
            _mm_storeu_si128(codes.as_mut_ptr().cast(), _mm_unpacklo_epi8(even, odd));
            _mm_storeu_si128(codes.as_mut_ptr().add(16).cast(), _mm_unpackhi_epi8(even, odd));
            let (mut block, mut taken) = ([0u8; 32], 0);
            for (to, bits) in block.chunks_exact_mut(8).zip(bits.to_le_bytes()) {
                let stored = _mm256_castsi256_si128(place::<1>(bits, codes.as_ptr().add(taken)));
                let places = _mm_loadl_epi64(PLACES[usize::from(bits)].as_ptr().cast());
                let none = _mm_cmpgt_epi8(_mm_setzero_si128(), places);
                _mm_storel_epi64(to.as_mut_ptr().cast(), _mm_or_si128(stored, _mm_and_si128(none, middle)));
                taken += bits.count_ones() as usize;
            }
            let low = _mm_loadu_si128(block.as_ptr().cast());
            let high = _mm_slli_epi16::<4>(_mm_loadu_si128(block.as_ptr().add(16).cast()));
            _mm_storeu_si128(a.to.add(i / 2).cast(), _mm_or_si128(low, high));
        }
    }
    values
}

macro_rules! kernels {
    ($($name:ident: $size:literal;)*) => {$(
        /// # Safety
        /// See [`ExpandFn`](crate::rows::expand::ExpandFn); AVX2.
        #[target_feature(enable = "avx2,popcnt")]
        pub(crate) unsafe fn $name(a: &Expand) -> *const u8 {
            // SAFETY: the contract is the caller's.
            unsafe { expand::<$size>(a) }
        }
    )*};
}

kernels! {
    expand_8_bits_avx2: 1;
    expand_16_bits_avx2: 2;
    expand_32_bits_avx2: 4;
}
