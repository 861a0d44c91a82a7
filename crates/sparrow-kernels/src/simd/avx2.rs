//! AVX2 loads, widened to `f32`, and sums.

use super::vector::{Vector, padded};
use crate::dtype::coded::{CHUNK, Scales};
use crate::dtype::{BF16, Coded, F16, F32, I8, code_size};
use std::arch::x86_64::*;

/// Elements of one vector.
pub(crate) const LANES: usize = 8;

/// Eight elements at `p`, any alignment.
///
/// # Safety
/// Eight elements of type `D` must be readable at `p`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) unsafe fn load<const D: u8>(p: *const u8) -> __m256 {
    // SAFETY: the caller guarantees 8 readable elements; the loads are unaligned ones.
    unsafe {
        if D == BF16 {
            let half = _mm_loadu_si128(p.cast());
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(half)))
        } else if D == F16 {
            _mm256_cvtph_ps(_mm_loadu_si128(p.cast()))
        } else {
            _mm256_loadu_ps(p.cast())
        }
    }
}

/// The first `n < 8` elements at `p`, zeros after them.
///
/// # Safety
/// `n` elements of type `D` must be readable at `p`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) unsafe fn load_part<const D: u8>(p: *const u8, n: usize) -> __m256 {
    let mut bytes = [0u8; 32];
    // SAFETY: the caller guarantees n readable elements, and n < 8 of them fit; the load then reads the copy.
    unsafe {
        std::ptr::copy_nonoverlapping(p, bytes.as_mut_ptr(), n.min(LANES) * code_size(D));
        load::<D>(bytes.as_ptr())
    }
}

/// Elements `c..c + 8` of a stored row, `c` a multiple of 8; of int8 without the row's scale.
///
/// # Safety
/// The row must be readable and hold 8 elements from `c` on.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) unsafe fn load_at<const D: u8>(row: *const u8, c: usize) -> __m256 {
    // SAFETY: an int8 row holds its elements, padding and scale; of floats the caller guarantees the elements.
    unsafe {
        match D {
            F32 | F16 | BF16 => load::<D>(row.add(c * code_size(D))),
            I8 => _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(row.add(c).cast()))),
            _ => unreachable!("codes are read 32 at a time"),
        }
    }
}

/// As [`load_at`] for the last `n < 8` elements; lanes beyond them hold finite padding.
///
/// # Safety
/// The row must be readable and hold `n` elements from `c` on.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) unsafe fn load_part_at<const D: u8>(row: *const u8, c: usize, n: usize) -> __m256 {
    // SAFETY: an int8 row has at least 8 bytes from a multiple of 8 below `cols` on; of floats only n elements are read.
    unsafe {
        match D {
            F32 | F16 | BF16 => load_part::<D>(row.add(c * code_size(D)), n),
            _ => load_at::<D>(row, c),
        }
    }
}

/// What the codes of chunk number `chunk` of a span are worth.
///
/// # Safety
/// The scales must be those of the span; AVX2.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) unsafe fn values<F: Coded>(codes: __m256i, scales: &Scales, chunk: usize) -> [__m256; 4] {
    let (low, high) = (_mm256_castsi256_si128(codes), _mm256_extracti128_si256::<1>(codes));
    let eights = [low, _mm_unpackhi_epi64(low, low), high, _mm_unpackhi_epi64(high, high)];
    let group = chunk * CHUNK / F::GROUP;
    let mut values = [_mm256_setzero_ps(); 4];
    for (i, eight) in eights.into_iter().enumerate() {
        let code = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(eight));
        let at = group + 8 * i / F::GROUP;
        let factor = _mm256_set1_ps(scales.factors[at]);
        values[i] = if F::OFFSETS {
            _mm256_fmadd_ps(code, factor, _mm256_set1_ps(scales.offsets[at]))
        } else {
            _mm256_mul_ps(code, factor)
        };
    }
    values
}

/// An 8 × 8 matrix of 32-bit values transposed, one row per vector.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn transpose8(rows: [__m256i; 8]) -> [__m256i; 8] {
    let mut a = rows;
    for i in 0..4 {
        a[2 * i] = _mm256_unpacklo_epi32(rows[2 * i], rows[2 * i + 1]);
        a[2 * i + 1] = _mm256_unpackhi_epi32(rows[2 * i], rows[2 * i + 1]);
    }
    let mut b = a;
    for i in 0..2 {
        b[4 * i] = _mm256_unpacklo_epi64(a[4 * i], a[4 * i + 2]);
        b[4 * i + 1] = _mm256_unpackhi_epi64(a[4 * i], a[4 * i + 2]);
        b[4 * i + 2] = _mm256_unpacklo_epi64(a[4 * i + 1], a[4 * i + 3]);
        b[4 * i + 3] = _mm256_unpackhi_epi64(a[4 * i + 1], a[4 * i + 3]);
    }
    // b[4i + c], half h: rows 4i.. of column 4h + c.
    let mut columns = rows;
    for c in 0..4 {
        columns[c] = _mm256_permute2x128_si256::<0x20>(b[c], b[4 + c]);
        columns[4 + c] = _mm256_permute2x128_si256::<0x31>(b[c], b[4 + c]);
    }
    columns
}

/// The sum of all lanes.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) fn sum(v: __m256) -> f32 {
    let v = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
    let v = _mm_add_ps(v, _mm_movehl_ps(v, v));
    _mm_cvtss_f32(_mm_add_ss(v, _mm_shuffle_ps::<1>(v, v)))
}

/// AVX2 as a [`Vector`].
pub(crate) struct Avx2;

impl Vector for Avx2 {
    type V = __m256;
    const LANES: usize = LANES;

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn zero() -> __m256 {
        _mm256_setzero_ps()
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn splat(value: f32) -> __m256 {
        _mm256_set1_ps(value)
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn load(p: *const f32) -> __m256 {
        // SAFETY: the caller guarantees a readable vector.
        unsafe { _mm256_loadu_ps(p) }
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn store(p: *mut f32, v: __m256) {
        // SAFETY: the caller guarantees a writable vector.
        unsafe { _mm256_storeu_ps(p, v) }
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn fma(a: __m256, b: __m256, c: __m256) -> __m256 {
        _mm256_fmadd_ps(a, b, c)
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn sum4([a, b, c, d]: [__m256; 4]) -> [f32; 4] {
        let ab = _mm256_add_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
        let cd = _mm256_add_ps(_mm256_unpacklo_ps(c, d), _mm256_unpackhi_ps(c, d));
        let (ab, cd) = (_mm256_castps_pd(ab), _mm256_castps_pd(cd));
        let (low, high) = (_mm256_unpacklo_pd(ab, cd), _mm256_unpackhi_pd(ab, cd));
        let halves = _mm256_add_ps(_mm256_castpd_ps(low), _mm256_castpd_ps(high));
        let sums = _mm_add_ps(_mm256_castps256_ps128(halves), _mm256_extractf128_ps::<1>(halves));
        let mut out = [0.0; 4];
        // SAFETY: the array has four values.
        unsafe { _mm_storeu_ps(out.as_mut_ptr(), sums) };
        out
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn pair<const D: u8>(p: *const u8) -> [__m256; 2] {
        // SAFETY: the caller guarantees 16 readable elements.
        unsafe {
            if D == BF16 {
                let both = _mm256_loadu_si256(p.cast());
                let odd = _mm256_and_si256(both, _mm256_set1_epi32(0xffff_0000u32 as i32));
                [_mm256_castsi256_ps(_mm256_slli_epi32::<16>(both)), _mm256_castsi256_ps(odd)]
            } else if D == I8 {
                let both = _mm_loadu_si128(p.cast());
                let high = _mm_unpackhi_epi64(both, both);
                [both, high].map(|v| _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(v)))
            } else {
                [load::<D>(p), load::<D>(p.add(LANES * code_size(D)))]
            }
        }
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn pair_part<const D: u8>(p: *const u8, n: usize) -> [__m256; 2] {
        // SAFETY: the caller guarantees n elements; the copy has a pair of vectors.
        unsafe { Self::pair::<D>(padded::<D>(p, n).as_ptr()) }
    }
}
