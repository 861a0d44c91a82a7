//! AVX-512 loads, widened to `f32`.

use super::vector::{Vector, padded};
use crate::dtype::{BF16, F16, F32, I8, code_size};
use std::arch::x86_64::*;

/// Elements of one vector.
pub(crate) const LANES: usize = 16;

/// Sixteen elements at `p`, any alignment; of int8 without the row's scale.
///
/// # Safety
/// Sixteen elements of type `D` must be readable at `p`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
pub(crate) unsafe fn load<const D: u8>(p: *const u8) -> __m512 {
    // SAFETY: the caller guarantees 16 readable elements; the loads are unaligned ones.
    unsafe {
        if D == BF16 {
            let half = _mm256_loadu_si256(p.cast());
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(half)))
        } else if D == F16 {
            _mm512_cvtph_ps(_mm256_loadu_si256(p.cast()))
        } else if D == I8 {
            _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(p.cast())))
        } else {
            _mm512_loadu_ps(p.cast())
        }
    }
}

/// The elements at `p` whose bit of `mask` is set, zeros elsewhere.
///
/// # Safety
/// The elements of type `D` whose bit is set must be readable at `p`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
pub(crate) unsafe fn load_masked<const D: u8>(mask: __mmask16, p: *const u8) -> __m512 {
    // SAFETY: masked loads touch only the lanes that the caller guarantees.
    unsafe {
        if D == BF16 {
            let half = _mm256_maskz_loadu_epi16(mask, p.cast());
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(half)))
        } else if D == F16 {
            _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, p.cast()))
        } else if D == I8 {
            _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(mask, p.cast())))
        } else {
            _mm512_maskz_loadu_ps(mask, p.cast())
        }
    }
}

/// Elements `c..c + n` of a stored row of floats, `0 < n <= 16`; other lanes hold zeros.
///
/// # Safety
/// The row must be readable and have the elements.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
pub(crate) unsafe fn load_at<const D: u8>(row: *const u8, c: usize, n: usize) -> __m512 {
    // SAFETY: only n elements are read.
    unsafe {
        match D {
            F32 | F16 | BF16 if n >= LANES => load::<D>(row.add(c * code_size(D))),
            F32 | F16 | BF16 => load_masked::<D>(first(n), row.add(c * code_size(D))),
            _ => unreachable!("int8 is read as it is, codes 32 at a time"),
        }
    }
}

/// The mask of the first `n < 16` lanes.
#[inline(always)]
pub(crate) fn first(n: usize) -> __mmask16 {
    ((1u32 << n) - 1) as __mmask16
}

/// The mask of the first `n` lanes, all if there are fewer.
#[inline(always)]
pub(crate) fn upto16(n: usize) -> __mmask16 {
    if n >= 16 { __mmask16::MAX } else { first(n) }
}

/// As [`upto16`] for 32 lanes.
#[inline(always)]
pub(crate) fn upto32(n: usize) -> __mmask32 {
    if n >= 32 { __mmask32::MAX } else { (1u32 << n) - 1 }
}

/// A 16 × 16 matrix of 32-bit values transposed, one row per vector.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
pub(crate) fn transpose16(rows: [__m512i; 16]) -> [__m512i; 16] {
    // Pairs of rows, then pairs of pairs: each 128-bit quarter of a vector holds four rows of one column.
    let mut a = rows;
    for i in 0..8 {
        a[2 * i] = _mm512_unpacklo_epi32(rows[2 * i], rows[2 * i + 1]);
        a[2 * i + 1] = _mm512_unpackhi_epi32(rows[2 * i], rows[2 * i + 1]);
    }
    let mut b = a;
    for i in 0..4 {
        b[4 * i] = _mm512_unpacklo_epi64(a[4 * i], a[4 * i + 2]);
        b[4 * i + 1] = _mm512_unpackhi_epi64(a[4 * i], a[4 * i + 2]);
        b[4 * i + 2] = _mm512_unpacklo_epi64(a[4 * i + 1], a[4 * i + 3]);
        b[4 * i + 3] = _mm512_unpackhi_epi64(a[4 * i + 1], a[4 * i + 3]);
    }
    // b[4i + c], quarter q: rows 4i.. of column 4q + c. Gather the quarters of the four vectors of each c.
    let mut columns = rows;
    for c in 0..4 {
        let low = _mm512_shuffle_i32x4::<0x88>(b[c], b[4 + c]);
        let high = _mm512_shuffle_i32x4::<0x88>(b[8 + c], b[12 + c]);
        columns[c] = _mm512_shuffle_i32x4::<0x88>(low, high);
        columns[8 + c] = _mm512_shuffle_i32x4::<0xdd>(low, high);
        let low = _mm512_shuffle_i32x4::<0xdd>(b[c], b[4 + c]);
        let high = _mm512_shuffle_i32x4::<0xdd>(b[8 + c], b[12 + c]);
        columns[4 + c] = _mm512_shuffle_i32x4::<0x88>(low, high);
        columns[12 + c] = _mm512_shuffle_i32x4::<0xdd>(low, high);
    }
    columns
}

/// AVX-512 as a [`Vector`].
pub(crate) struct Avx512;

impl Vector for Avx512 {
    type V = __m512;
    const LANES: usize = LANES;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    unsafe fn zero() -> __m512 {
        _mm512_setzero_ps()
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    unsafe fn splat(value: f32) -> __m512 {
        _mm512_set1_ps(value)
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    unsafe fn load(p: *const f32) -> __m512 {
        // SAFETY: the caller guarantees a readable vector.
        unsafe { _mm512_loadu_ps(p) }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    unsafe fn store(p: *mut f32, v: __m512) {
        // SAFETY: the caller guarantees a writable vector.
        unsafe { _mm512_storeu_ps(p, v) }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    unsafe fn fma(a: __m512, b: __m512, c: __m512) -> __m512 {
        _mm512_fmadd_ps(a, b, c)
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    unsafe fn sum4([a, b, c, d]: [__m512; 4]) -> [f32; 4] {
        let ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
        let cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
        let (ab, cd) = (_mm512_castps_pd(ab), _mm512_castps_pd(cd));
        let (low, high) = (_mm512_unpacklo_pd(ab, cd), _mm512_unpackhi_pd(ab, cd));
        let quarters = _mm512_add_ps(_mm512_castpd_ps(low), _mm512_castpd_ps(high));
        let halves = _mm256_add_ps(_mm512_castps512_ps256(quarters), _mm512_extractf32x8_ps::<1>(quarters));
        let sums = _mm_add_ps(_mm256_castps256_ps128(halves), _mm256_extractf128_ps::<1>(halves));
        let mut out = [0.0; 4];
        // SAFETY: the array has four values.
        unsafe { _mm_storeu_ps(out.as_mut_ptr(), sums) };
        out
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    unsafe fn pair<const D: u8>(p: *const u8) -> [__m512; 2] {
        // SAFETY: the caller guarantees 32 readable elements.
        unsafe {
            if D == BF16 {
                let both = _mm512_loadu_si512(p.cast());
                let odd = _mm512_and_si512(both, _mm512_set1_epi32(0xffff_0000u32 as i32));
                [_mm512_castsi512_ps(_mm512_slli_epi32::<16>(both)), _mm512_castsi512_ps(odd)]
            } else if D == I8 {
                let (low, high) = (_mm_loadu_si128(p.cast()), _mm_loadu_si128(p.add(LANES).cast()));
                [low, high].map(|v| _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(v)))
            } else {
                [load::<D>(p), load::<D>(p.add(LANES * code_size(D)))]
            }
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    unsafe fn pair_part<const D: u8>(p: *const u8, n: usize) -> [__m512; 2] {
        // SAFETY: the caller guarantees n elements; the copy has a pair of vectors.
        unsafe { Self::pair::<D>(padded::<D>(p, n).as_ptr()) }
    }
}
