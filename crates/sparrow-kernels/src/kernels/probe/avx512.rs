//! Probes with AVX-512.

use super::STREAMS;
use std::arch::x86_64::*;

/// Reads every byte of [`STREAMS`] times whole lines; the result keeps the loads alive.
///
/// # Safety
/// The CPU must have AVX-512.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
pub(crate) unsafe fn read_avx512(bytes: &[u8]) -> u64 {
    let mut sums = [_mm512_setzero_si512(); STREAMS];
    let len = bytes.len() / STREAMS;
    for i in (0..len / 64 * 64).step_by(64) {
        for (stream, sum) in sums.iter_mut().enumerate() {
            // SAFETY: every stream has the line.
            let v = unsafe { _mm512_loadu_si512(bytes.as_ptr().add(stream * len + i).cast()) };
            *sum = _mm512_xor_si512(*sum, v);
        }
    }
    let all = sums.into_iter().fold(_mm512_setzero_si512(), |all, sum| _mm512_xor_si512(all, sum));
    _mm_cvtsi128_si64(_mm512_castsi512_si128(all)) as u64
}

/// `steps` steps of independent multiply-adds; returns the operations done.
///
/// # Safety
/// The CPU must have AVX-512.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
pub(crate) unsafe fn peak_f32_avx512(steps: usize) -> f64 {
    const CHAINS: usize = 16;
    let a = _mm512_set1_ps(std::hint::black_box(0.999));
    let b = _mm512_set1_ps(std::hint::black_box(1e-3));
    let mut sums = [_mm512_set1_ps(1.0); CHAINS];
    for _ in 0..steps {
        for sum in &mut sums {
            *sum = _mm512_fmadd_ps(*sum, a, b);
        }
    }
    std::hint::black_box(sums);
    (2 * 16 * CHAINS * steps) as f64
}

/// `steps` steps of independent products of pairs of 16 bits, added up; returns the operations done.
///
/// # Safety
/// The CPU must have AVX512-VNNI.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
pub(crate) unsafe fn peak_int8_avx512(steps: usize) -> f64 {
    const CHAINS: usize = 16;
    let (a, b) = (_mm512_set1_epi16(std::hint::black_box(3)), _mm512_set1_epi16(std::hint::black_box(5)));
    let mut sums = [_mm512_set1_epi32(1); CHAINS];
    for _ in 0..steps {
        for sum in &mut sums {
            *sum = _mm512_dpwssd_epi32(*sum, a, b);
        }
    }
    std::hint::black_box(sums);
    (2 * 32 * CHAINS * steps) as f64
}

/// `steps` steps of independent products of pairs of bf16, added up; returns the operations done.
///
/// # Safety
/// The CPU must have AVX512-BF16.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
pub(crate) unsafe fn peak_bf16_avx512(steps: usize) -> f64 {
    const CHAINS: usize = 16;
    let [a, b] = [0.999, 1e-3].map(|v| _mm512_set1_ps(std::hint::black_box(v)));
    let (a, b) = (_mm512_cvtne2ps_pbh(a, a), _mm512_cvtne2ps_pbh(b, b));
    let mut sums = [_mm512_set1_ps(1.0); CHAINS];
    for _ in 0..steps {
        for sum in &mut sums {
            *sum = _mm512_dpbf16_ps(*sum, a, b);
        }
    }
    std::hint::black_box(sums);
    (2 * 32 * CHAINS * steps) as f64
}
