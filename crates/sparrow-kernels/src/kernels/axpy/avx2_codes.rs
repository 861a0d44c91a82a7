//! `axpy_rows` of codes with AVX2: sums of integers, eight rows at a time.
//!
//! What a row is multiplied by, its coefficient times its scale, is rounded to 16 bits, the largest of the eight rows to
//! [`LARGEST`]. Two codes, of columns 2i and 2i + 1, are one word: 256 · odd + even, the even one as an unsigned byte. So
//! Σ k · even = Σ k · word − 256 · Σ k · odd, and only the odd ones have to be widened. Sums wrap around, differences do
//! not: 8 · 255 · LARGEST fits an `i32`.

use super::{AxpyRows, TILE};
use crate::dtype::coded::{CHUNK, Coded, SPAN, Scales, each_chunk};
use crate::rows::LARGEST;
use crate::simd::avx2::LANES;
use crate::simd::prefetch;
use std::arch::x86_64::*;

/// Rows that are added together.
const ROWS: usize = 8;
const PAIRS: usize = ROWS / 2;
/// Bytes of a line of the cache.
const LINE: usize = 64;

/// What eight rows are multiplied by in one span, by group.
#[derive(Clone, Copy, Default)]
#[repr(C, align(64))]
struct Multipliers {
    /// For each pair of rows, the first one's in the low half.
    pairs: [[i32; 16]; PAIRS],
    /// 128 times the sum of the rows': what the even codes have too much, shifted to be unsigned.
    shift: [i32; 16],
    scale: [f32; 16],
    /// The sum of what the rows' offsets add.
    offset: [f32; 16],
}

impl Multipliers {
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    fn of<F: Coded>(scales: &[Scales; ROWS], coefficients: &[f32; ROWS]) -> Self {
        let mut to = Self::default();
        let magnitude = _mm256_castsi256_ps(_mm256_set1_epi32(i32::MAX));
        for at in (0..SPAN / F::GROUP).step_by(LANES) {
            let (mut exact, mut codes) = ([_mm256_setzero_ps(); ROWS], [_mm256_setzero_si256(); ROWS]);
            let (mut max, mut offset, mut nan) = (_mm256_setzero_ps(), _mm256_setzero_ps(), _mm256_setzero_ps());
            // SAFETY: there are 16 groups at most, and `at` is a multiple of 8 below their number.
            unsafe {
                for r in 0..ROWS {
                    let k = _mm256_set1_ps(coefficients[r]);
                    exact[r] = _mm256_mul_ps(k, _mm256_load_ps(scales[r].factors.as_ptr().add(at)));
                    max = _mm256_max_ps(max, _mm256_and_ps(magnitude, exact[r]));
                    // NaN and infinity, which integers do not have, come back by the scale.
                    nan = _mm256_fmadd_ps(exact[r], _mm256_setzero_ps(), nan);
                    if F::OFFSETS {
                        offset = _mm256_fmadd_ps(k, _mm256_load_ps(scales[r].offsets.as_ptr().add(at)), offset);
                    }
                }
                let inverse = _mm256_div_ps(_mm256_set1_ps(LARGEST), max);
                let mut sum = _mm256_setzero_si256();
                for r in 0..ROWS {
                    codes[r] = _mm256_cvtps_epi32(_mm256_mul_ps(exact[r], inverse));
                    sum = _mm256_add_epi32(sum, codes[r]);
                }
                for p in 0..PAIRS {
                    let pair = _mm256_blend_epi16::<0xaa>(codes[2 * p], _mm256_slli_epi32::<16>(codes[2 * p + 1]));
                    _mm256_store_si256(to.pairs[p].as_mut_ptr().add(at).cast(), pair);
                }
                _mm256_store_si256(to.shift.as_mut_ptr().add(at).cast(), _mm256_slli_epi32::<7>(sum));
                let scale = _mm256_fmadd_ps(max, _mm256_set1_ps(1.0 / LARGEST), nan);
                _mm256_store_ps(to.scale.as_mut_ptr().add(at), scale);
                _mm256_store_ps(to.offset.as_mut_ptr().add(at), offset);
            }
        }
        to
    }
}

/// The value of the first and of the second half of chunk number `chunk`, each in a half of the vector.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn halves<F: Coded>(of: &[i32; 16], chunk: usize) -> __m256i {
    let first = chunk * CHUNK / F::GROUP;
    if F::GROUP == CHUNK {
        _mm256_set1_epi32(of[first])
    } else {
        _mm256_set_m128i(_mm_set1_epi32(of[first + 1]), _mm_set1_epi32(of[first]))
    }
}

/// The words of two rows in turns, of the first and of the second quarters of each half of a chunk, and their odd codes.
///
/// # Safety
/// The rows must be readable and have the chunk's first element; AVX2.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn words<F: Coded>(rows: [*const u8; 2], cols: usize, span: usize, chunk: usize) -> [__m256i; 4] {
    let unsign = _mm256_set1_epi16(0x80);
    // SAFETY: the contract is the caller's.
    unsafe {
        let first = _mm256_xor_si256(F::codes(rows[0], cols, span, chunk), unsign);
        let second = _mm256_xor_si256(F::codes(rows[1], cols, span, chunk), unsign);
        let low = _mm256_unpacklo_epi16(first, second);
        let high = _mm256_unpackhi_epi16(first, second);
        [low, high, _mm256_srai_epi16::<8>(low), _mm256_srai_epi16::<8>(high)]
    }
}

/// Adds the words of a pair of rows, times their multipliers.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn add_pair(sums: &mut [__m256i; 4], words: [__m256i; 4], by: __m256i) {
    for i in 0..4 {
        sums[i] = _mm256_add_epi32(sums[i], _mm256_madd_epi16(words[i], by));
    }
}

/// Adds the sums of eight rows in a chunk to 32 values at `to`.
///
/// # Safety
/// `to` must be valid for 32 values; AVX2.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn add_chunk<F: Coded>(sums: [__m256i; 4], by: &Multipliers, chunk: usize, to: *mut f32) {
    let shift = halves::<F>(&by.shift, chunk);
    // Columns 0..4, 4..8, 8..12 and 12..16 of each half.
    let mut quarters = [_mm256_setzero_si256(); 4];
    for i in 0..2 {
        let odd = sums[2 + i];
        let even = _mm256_sub_epi32(_mm256_sub_epi32(sums[i], _mm256_slli_epi32::<8>(odd)), shift);
        quarters[2 * i] = _mm256_unpacklo_epi32(even, odd);
        quarters[2 * i + 1] = _mm256_unpackhi_epi32(even, odd);
    }
    let values = [
        _mm256_permute2x128_si256::<0x20>(quarters[0], quarters[1]),
        _mm256_permute2x128_si256::<0x20>(quarters[2], quarters[3]),
        _mm256_permute2x128_si256::<0x31>(quarters[0], quarters[1]),
        _mm256_permute2x128_si256::<0x31>(quarters[2], quarters[3]),
    ];
    for (i, values) in values.into_iter().enumerate() {
        let group = (chunk * CHUNK + i * LANES) / F::GROUP;
        // SAFETY: the caller guarantees 32 values.
        unsafe {
            let at = to.add(i * LANES);
            let mut sum = _mm256_loadu_ps(at);
            if F::OFFSETS {
                sum = _mm256_add_ps(sum, _mm256_set1_ps(by.offset[group]));
            }
            sum = _mm256_fmadd_ps(_mm256_set1_ps(by.scale[group]), _mm256_cvtepi32_ps(values), sum);
            _mm256_storeu_ps(at, sum);
        }
    }
}

/// Adds up to eight rows, from row `j` of the set on, for activations `t0..t0 + tile`: one, or `T` at most.
///
/// # Safety
/// See [`AxpyRowsFn`](super::AxpyRowsFn); `j < count`, `t0 + tile <= m`, `0 < tile <= T`; AVX2.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn group<F: Coded, const T: usize>(a: &AxpyRows, j: usize, t0: usize, tile: usize) {
    let tile = if T == 1 { 1 } else { tile };
    let count = ROWS.min(a.rows.count - j);
    let (cols, end) = (a.rows.cols, a.start + a.cols);
    let mut coefficients = [[0.0f32; ROWS]; T];
    let mut scales = [Scales::default(); ROWS];
    let mut by = [Multipliers::default(); T];
    // Of a chunk; some are scales, but ahead is near enough.
    let bytes = const { F::DTYPE.row_bytes(SPAN) / (SPAN / CHUNK) };
    // SAFETY: rows j..j + count are in the set, activations t0..t0 + tile exist; chunks start below `end`, and what is
    // beyond it is not written.
    unsafe {
        // Where there are fewer rows, the first one again, times zero.
        let rows: [*const u8; ROWS] = std::array::from_fn(|r| a.rows.row(if r < count { j + r } else { j }));
        let next: [*const u8; ROWS] = std::array::from_fn(|r| a.rows.row((j + ROWS + r).min(a.rows.count - 1)));
        for t in 0..tile {
            for r in 0..count {
                coefficients[t][r] = a.coefficient(t0 + t, j + r);
            }
        }
        for span in a.start / SPAN..end.div_ceil(SPAN) {
            for r in 0..ROWS {
                F::scales(rows[r], cols, span, &mut scales[r]);
            }
            for t in 0..tile {
                by[t] = Multipliers::of::<F>(&scales, &coefficients[t]);
            }
            each_chunk! { (end - span * SPAN).min(SPAN).div_ceil(CHUNK), chunk => {
                let c = span * SPAN + chunk * CHUNK;
                if t0 == 0 && chunk * bytes % LINE < bytes {
                    let at = (span * (SPAN / CHUNK) + chunk) * bytes;
                    next.iter().for_each(|next| prefetch(next.wrapping_add(at), false));
                }
                let mut known = [[_mm256_setzero_si256(); 4]; PAIRS];
                if T > 1 {
                    for p in 0..PAIRS {
                        known[p] = words::<F>([rows[2 * p], rows[2 * p + 1]], cols, span, chunk);
                    }
                }
                for (t, by) in by[..tile].iter().enumerate() {
                    let at = a.out.add((t0 + t) * a.out_stride + (c - a.start));
                    let whole = c + CHUNK <= end;
                    let mut last = [0.0f32; CHUNK];
                    if !whole {
                        std::ptr::copy_nonoverlapping(at, last.as_mut_ptr(), end - c);
                    }
                    let to = if whole { at } else { last.as_mut_ptr() };
                    let mut sums = [_mm256_setzero_si256(); 4];
                    for p in 0..PAIRS {
                        let words = match T {
                            1 => words::<F>([rows[2 * p], rows[2 * p + 1]], cols, span, chunk),
                            _ => known[p],
                        };
                        add_pair(&mut sums, words, halves::<F>(&by.pairs[p], chunk));
                    }
                    add_chunk::<F>(sums, by, chunk, to);
                    if !whole {
                        std::ptr::copy_nonoverlapping(last.as_ptr(), at, end - c);
                    }
                }
            } }
        }
    }
}

/// # Safety
/// See [`AxpyRowsFn`](super::AxpyRowsFn); AVX2.
#[target_feature(enable = "avx2,fma,f16c")]
pub(crate) unsafe fn axpy_codes_avx2<F: Coded>(a: &AxpyRows) {
    for j in (0..a.rows.count).step_by(ROWS) {
        for t in (0..a.m).step_by(TILE) {
            let tile = TILE.min(a.m - t);
            // SAFETY: the contract is the caller's; the rows and activations are in range.
            unsafe {
                match tile {
                    1 => group::<F, 1>(a, j, t, tile),
                    _ => group::<F, TILE>(a, j, t, tile),
                }
            }
        }
    }
}
