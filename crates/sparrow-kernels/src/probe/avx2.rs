//! Probes with AVX2.

use std::arch::x86_64::*;

/// Reads every byte; the result keeps the loads alive.
///
/// # Safety
/// The CPU must have AVX2.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) unsafe fn read_avx2(bytes: &[u8]) -> u64 {
    let mut sums = [_mm256_setzero_si256(); 4];
    for chunk in bytes.as_chunks::<{ 4 * 32 }>().0 {
        for (i, sum) in sums.iter_mut().enumerate() {
            // SAFETY: the chunk holds four vectors.
            let v = unsafe { _mm256_loadu_si256(chunk.as_ptr().add(i * 32).cast()) };
            *sum = _mm256_xor_si256(*sum, v);
        }
    }
    let all = _mm256_xor_si256(_mm256_xor_si256(sums[0], sums[1]), _mm256_xor_si256(sums[2], sums[3]));
    _mm_cvtsi128_si64(_mm256_castsi256_si128(all)) as u64
}

/// `steps` steps of independent multiply-adds; returns the operations done.
///
/// # Safety
/// The CPU must have AVX2.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) unsafe fn peak_f32_avx2(steps: usize) -> f64 {
    const CHAINS: usize = 10;
    let a = _mm256_set1_ps(std::hint::black_box(0.999));
    let b = _mm256_set1_ps(std::hint::black_box(1e-3));
    let mut sums = [_mm256_set1_ps(1.0); CHAINS];
    for _ in 0..steps {
        for sum in &mut sums {
            *sum = _mm256_fmadd_ps(*sum, a, b);
        }
    }
    std::hint::black_box(sums);
    (2 * 8 * CHAINS * steps) as f64
}
