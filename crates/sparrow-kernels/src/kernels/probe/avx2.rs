//! Probes with AVX2.

use super::STREAMS;
use std::arch::x86_64::*;

/// Reads every byte of [`STREAMS`] times whole lines; the result keeps the loads alive.
///
/// # Safety
/// The CPU must have AVX2.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) unsafe fn read_avx2(bytes: &[u8]) -> u64 {
    let mut sums = [_mm256_setzero_si256(); STREAMS];
    let len = bytes.len() / STREAMS;
    for i in (0..len / 64 * 64).step_by(64) {
        for (stream, sum) in sums.iter_mut().enumerate() {
            // SAFETY: every stream has the line.
            unsafe {
                let line = bytes.as_ptr().add(stream * len + i);
                let both = [_mm256_loadu_si256(line.cast()), _mm256_loadu_si256(line.add(32).cast())];
                *sum = _mm256_xor_si256(*sum, _mm256_xor_si256(both[0], both[1]));
            }
        }
    }
    let all = sums.into_iter().fold(_mm256_setzero_si256(), |all, sum| _mm256_xor_si256(all, sum));
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

/// `steps` steps of independent products of pairs of 16 bits, added up; returns the operations done.
///
/// # Safety
/// The CPU must have AVX2.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) unsafe fn peak_int8_avx2(steps: usize) -> f64 {
    const CHAINS: usize = 10;
    let a = _mm256_set1_epi16(std::hint::black_box(3));
    let mut sums = [_mm256_set1_epi32(std::hint::black_box(1)); CHAINS];
    for _ in 0..steps {
        for sum in &mut sums {
            // Of what the last step left, so that nothing can be taken out of the loop.
            *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(*sum, a));
        }
    }
    std::hint::black_box(sums);
    (2 * 16 * CHAINS * steps) as f64
}

/// As [`peak_int8_avx2`], with one instruction for products and sums.
///
/// # Safety
/// The CPU must have AVX-VNNI.
#[target_feature(enable = "avx2,fma,f16c,avxvnni")]
pub(crate) unsafe fn peak_int8_avx2_vnni(steps: usize) -> f64 {
    const CHAINS: usize = 10;
    let (a, b) = (_mm256_set1_epi16(std::hint::black_box(3)), _mm256_set1_epi16(std::hint::black_box(5)));
    let mut sums = [_mm256_set1_epi32(1); CHAINS];
    for _ in 0..steps {
        for sum in &mut sums {
            *sum = _mm256_dpwssd_avx_epi32(*sum, a, b);
        }
    }
    std::hint::black_box(sums);
    (2 * 16 * CHAINS * steps) as f64
}
