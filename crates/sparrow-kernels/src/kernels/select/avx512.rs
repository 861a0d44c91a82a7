//! Bitmaps with AVX-512.

use super::scalar;
use crate::simd::avx512::LANES;
use crate::simd::vectorised;
use std::arch::x86_64::*;
use std::mem::MaybeUninit;

vectorised! { "avx512f,avx512bw,avx512vl,avx512dq,fma":
    zero_unset_f32_avx512 = scalar::zero_unset, (values: &mut [f32], mask: &[u64]);
}

/// The bits of whole words, `test` giving those of one vector; the rest by the scalar tier.
macro_rules! words {
    ($values:ident, $mask:ident, $test:expr, $rest:expr) => {{
        let (chunks, tail) = $values.as_chunks::<64>();
        let (whole, last) = $mask.split_at_mut(chunks.len());
        for (word, chunk) in whole.iter_mut().zip(chunks) {
            *word = 0;
            for (i, vector) in chunk.as_chunks::<LANES>().0.iter().enumerate() {
                // SAFETY: the vector has 16 values.
                let v = unsafe { _mm512_loadu_ps(vector.as_ptr()) };
                *word |= u64::from($test(v)) << (i * LANES);
            }
        }
        scalar::mask_by(tail, last, $rest);
    }};
}

/// # Safety
/// The CPU must have AVX-512.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
pub(crate) unsafe fn mask_above_f32_avx512(scores: &[f32], threshold: f32, magnitude: bool, mask: &mut [u64]) {
    let t = _mm512_set1_ps(threshold);
    if magnitude {
        words!(scores, mask, |v| _mm512_cmp_ps_mask::<_CMP_GT_OQ>(_mm512_abs_ps(v), t), |v| v.abs() > threshold);
    } else {
        words!(scores, mask, |v| _mm512_cmp_ps_mask::<_CMP_GT_OQ>(v, t), |v| v > threshold);
    }
}

/// Sixteen numbers at a time, those of set bits moved to the front of a vector.
///
/// # Safety
/// The CPU must have AVX-512.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,popcnt")]
pub(crate) unsafe fn mask_to_ids_avx512(mask: &[u64], ids: &mut [MaybeUninit<u32>]) -> usize {
    assert!(ids.len() >= mask.len() * 64);
    let mut numbers = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    let step = _mm512_set1_epi32(LANES as i32);
    let mut count = 0;
    for &word in mask {
        for i in 0..64 / LANES {
            let bits = (word >> (i * LANES)) as __mmask16;
            let set = _mm512_maskz_compress_epi32(bits, numbers);
            // SAFETY: there is room for every bit of the mask; before this vector's bits there were at least `count`,
            // so 16 more fit.
            unsafe { _mm512_storeu_si512(ids.as_mut_ptr().add(count).cast(), set) };
            count += bits.count_ones() as usize;
            numbers = _mm512_add_epi32(numbers, step);
        }
    }
    count
}
