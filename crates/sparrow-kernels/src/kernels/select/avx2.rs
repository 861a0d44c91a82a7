//! Bitmaps and sums with AVX2.

use super::scalar;
use crate::simd::avx2::LANES;
use crate::simd::vectorised;
use std::arch::x86_64::*;

vectorised! { "avx2,fma,f16c":
    zero_unset_f32_avx2 = scalar::zero_unset, (values: &mut [f32], mask: &[u64]);
}

/// The bits of whole words, `test` giving a vector of all-ones lanes; the rest by the scalar tier.
macro_rules! words {
    ($values:ident, $mask:ident, $test:expr, $rest:expr) => {{
        let (chunks, tail) = $values.as_chunks::<64>();
        let (whole, last) = $mask.split_at_mut(chunks.len());
        for (word, chunk) in whole.iter_mut().zip(chunks) {
            *word = 0;
            for (i, vector) in chunk.as_chunks::<LANES>().0.iter().enumerate() {
                // SAFETY: the vector has 8 values.
                let v = unsafe { _mm256_loadu_ps(vector.as_ptr()) };
                *word |= u64::from(_mm256_movemask_ps($test(v)) as u32) << (i * LANES);
            }
        }
        scalar::mask_by(tail, last, $rest);
    }};
}

/// # Safety
/// The CPU must have AVX2.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) unsafe fn mask_above_f32_avx2(scores: &[f32], threshold: f32, magnitude: bool, mask: &mut [u64]) {
    let t = _mm256_set1_ps(threshold);
    if magnitude {
        let sign = _mm256_set1_ps(-0.0);
        words!(scores, mask, |v| _mm256_cmp_ps::<_CMP_GT_OQ>(_mm256_andnot_ps(sign, v), t), |v| v.abs() > threshold);
    } else {
        words!(scores, mask, |v| _mm256_cmp_ps::<_CMP_GT_OQ>(v, t), |v| v > threshold);
    }
}

/// Σ x and Σ x² in `f64`, four chains each.
///
/// # Safety
/// The CPU must have AVX2.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) unsafe fn sums_f32_avx2(x: &[f32]) -> (f64, f64) {
    const CHAINS: usize = 4;
    let (mut sum, mut squares) = ([_mm256_setzero_pd(); CHAINS], [_mm256_setzero_pd(); CHAINS]);
    let (chunks, rest) = x.as_chunks::<{ 4 * CHAINS }>();
    for chunk in chunks {
        for i in 0..CHAINS {
            // SAFETY: the chunk has 4 values for each chain.
            let v = _mm256_cvtps_pd(unsafe { _mm_loadu_ps(chunk.as_ptr().add(4 * i)) });
            sum[i] = _mm256_add_pd(sum[i], v);
            squares[i] = _mm256_fmadd_pd(v, v, squares[i]);
        }
    }
    let fold = |v: [__m256d; CHAINS]| {
        let v = _mm256_add_pd(_mm256_add_pd(v[0], v[1]), _mm256_add_pd(v[2], v[3]));
        let v = _mm_add_pd(_mm256_castpd256_pd128(v), _mm256_extractf128_pd::<1>(v));
        _mm_cvtsd_f64(v) + _mm_cvtsd_f64(_mm_unpackhi_pd(v, v))
    };
    let rest = scalar::sums(rest);
    (fold(sum) + rest.0, fold(squares) + rest.1)
}
