//! `axpy_rows` of codes and of int8 with AVX512-VNNI: sums of integers, eight rows at a time.
//!
//! What a row is multiplied by, its coefficient times its scale, is rounded to 16 bits, the largest of the eight rows to
//! [`LARGEST`]. Codes are unsigned bytes; those of four rows in turns are multiplied by the high and by the low bytes of
//! the four multipliers, and added, by VPDPBUSD. Nothing overflows: 8 · 255 · LARGEST fits an `i32`.

use super::{AxpyRows, TILE};
use crate::dtype::coded::{CHUNK, Coded, PAIR, SPAN, Scales, each_chunk, groups_of_pair, of_groups};
use crate::dtype::layout::int8_scale;
use crate::rows::LARGEST;
use crate::simd::avx512::{LANES, upto16};
use crate::simd::prefetch;
use std::arch::x86_64::*;
use std::ops::Range;

/// Rows that are added together, in two fours.
const ROWS: usize = 8;
const FOURS: usize = ROWS / 4;
/// Bytes of a line of the cache.
const LINE: usize = 64;

/// Rows as unsigned bytes.
trait ByteRows {
    /// Elements that share a scale: 16 or 32.
    const GROUP: usize;
    /// Whether there are offsets.
    const OFFSETS: bool;
    /// Whether all spans of a row have the same scales.
    const ALIKE: bool;
    /// Bytes of a pair of chunks; some may be scales.
    const BYTES: usize;

    /// The bytes of pair number `pair` of span number `span`, anything beyond the last element of the row.
    ///
    /// # Safety
    /// The row must be readable and have the pair's first element, if it is `WHOLE` all of them; AVX-512.
    unsafe fn pair<const WHOLE: bool>(row: *const u8, cols: usize, span: usize, pair: usize) -> __m512i;

    /// What turns bytes of span number `span` into values.
    ///
    /// # Safety
    /// As above, of the span.
    unsafe fn scales(row: *const u8, cols: usize, span: usize, to: &mut Scales);
}

impl<F: Coded> ByteRows for F {
    const GROUP: usize = F::GROUP;
    const OFFSETS: bool = F::BYTE_OFFSETS;
    const ALIKE: bool = false;
    const BYTES: usize = F::DTYPE.row_bytes(SPAN) / (SPAN / PAIR);

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
    unsafe fn pair<const WHOLE: bool>(row: *const u8, cols: usize, span: usize, pair: usize) -> __m512i {
        // SAFETY: the contract is the caller's; the second chunk is read where the row has it.
        unsafe {
            if WHOLE || span * SPAN + pair * PAIR + CHUNK < cols {
                F::byte_pair(row, cols, span, pair)
            } else {
                _mm512_zextsi256_si512(F::bytes(row, cols, span, 2 * pair))
            }
        }
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn scales(row: *const u8, cols: usize, span: usize, to: &mut Scales) {
        // SAFETY: the contract is the caller's.
        unsafe { F::byte_scales(row, cols, span, to) };
    }
}

/// Rows of int8: all groups have the row's scale.
struct Int8Rows;

impl ByteRows for Int8Rows {
    const GROUP: usize = 16;
    const OFFSETS: bool = true;
    const ALIKE: bool = true;
    const BYTES: usize = PAIR;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
    unsafe fn pair<const WHOLE: bool>(row: *const u8, cols: usize, span: usize, pair: usize) -> __m512i {
        let first = span * SPAN + pair * PAIR;
        // SAFETY: there are 64 codes, or the mask ends at the last.
        let codes = unsafe {
            if WHOLE || cols - first >= PAIR {
                _mm512_loadu_si512(row.add(first).cast())
            } else {
                _mm512_maskz_loadu_epi8((1 << (cols - first)) - 1, row.add(first).cast())
            }
        };
        _mm512_xor_si512(codes, _mm512_set1_epi8(i8::MIN))
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn scales(row: *const u8, cols: usize, _: usize, to: &mut Scales) {
        // SAFETY: the contract is the caller's.
        let scale = unsafe { int8_scale(row, cols) };
        *to = Scales { factors: [scale; 16], offsets: [-128.0 * scale; 16] };
    }
}

/// What eight rows are multiplied by in one span, by group.
#[derive(Clone, Copy)]
struct Multipliers {
    /// The high bytes of each four rows, and the low ones, both signed.
    high: [__m512i; FOURS],
    low: [__m512i; FOURS],
    scale: __m512,
    /// The sum of what the rows' offsets add.
    offset: __m512,
}

impl Multipliers {
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
    fn none() -> Self {
        let (zero, zeros) = (_mm512_setzero_ps(), [_mm512_setzero_si512(); FOURS]);
        Self { high: zeros, low: zeros, scale: zero, offset: zero }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
    fn of<B: ByteRows>(scales: &[Scales; ROWS], coefficients: &[f32; ROWS]) -> Self {
        let mut exact = [_mm512_setzero_ps(); ROWS];
        let (mut max, mut offset) = (_mm512_setzero_si512(), _mm512_setzero_ps());
        let magnitude = _mm512_set1_epi32(i32::MAX);
        for r in 0..ROWS {
            let k = _mm512_set1_ps(coefficients[r]);
            exact[r] = _mm512_mul_ps(k, of_groups(&scales[r].factors, B::GROUP));
            // As integers: NaN is above infinity, and that above all else.
            max = _mm512_max_epu32(max, _mm512_and_si512(magnitude, _mm512_castps_si512(exact[r])));
            if B::OFFSETS {
                offset = _mm512_fmadd_ps(k, of_groups(&scales[r].offsets, B::GROUP), offset);
            }
        }
        let max = _mm512_castsi512_ps(max);
        let inverse = _mm512_div_ps(_mm512_set1_ps(LARGEST), max);
        // NaN and infinity, which integers do not have, come back by the scale.
        let nan = _mm512_mul_ps(max, _mm512_setzero_ps());
        let mut to = Self::none();
        to.scale = _mm512_fmadd_ps(max, _mm512_set1_ps(1.0 / LARGEST), nan);
        to.offset = offset;
        for four in 0..FOURS {
            let mut codes = [_mm512_setzero_si512(); 4];
            for r in 0..4 {
                codes[r] = _mm512_cvtps_epi32(_mm512_mul_ps(exact[4 * four + r], inverse));
            }
            to.high[four] = high_bytes(codes);
            to.low[four] = low_bytes(codes);
        }
        to
    }
}

/// Byte number `n` of every 32 bits.
const fn byte(n: usize) -> __mmask64 {
    0x1111_1111_1111_1111 << n
}

/// The high bytes of four numbers of 16 bits, each of which is 256 · high + low, both signed.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
fn high_bytes([mut a, mut b, mut c, mut d]: [__m512i; 4]) -> __m512i {
    for number in [&mut a, &mut b, &mut c, &mut d] {
        // A low byte of 128 and more is negative, and the high one then larger by 1.
        *number = _mm512_add_epi32(*number, _mm512_set1_epi32(128));
    }
    let bytes = _mm512_srli_epi32::<8>(a);
    let bytes = _mm512_mask_mov_epi8(bytes, byte(1), b);
    let bytes = _mm512_mask_mov_epi8(bytes, byte(2), _mm512_slli_epi32::<8>(c));
    _mm512_mask_mov_epi8(bytes, byte(3), _mm512_slli_epi32::<16>(d))
}

/// The low bytes of four numbers.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
fn low_bytes([a, b, c, d]: [__m512i; 4]) -> __m512i {
    let bytes = _mm512_mask_mov_epi8(a, byte(1), _mm512_slli_epi32::<8>(b));
    let bytes = _mm512_mask_mov_epi8(bytes, byte(2), _mm512_slli_epi32::<16>(c));
    _mm512_mask_mov_epi8(bytes, byte(3), _mm512_slli_epi32::<24>(d))
}

/// The bytes of four rows in turns: vector i has columns 4i to 4i + 3 of every 16.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
fn in_turns([a, b, c, d]: [__m512i; 4]) -> [__m512i; 4] {
    let (ab, cd) = (_mm512_unpacklo_epi8(a, b), _mm512_unpacklo_epi8(c, d));
    let (ab_high, cd_high) = (_mm512_unpackhi_epi8(a, b), _mm512_unpackhi_epi8(c, d));
    [
        _mm512_unpacklo_epi16(ab, cd),
        _mm512_unpackhi_epi16(ab, cd),
        _mm512_unpacklo_epi16(ab_high, cd_high),
        _mm512_unpackhi_epi16(ab_high, cd_high),
    ]
}

/// The values of all rows in 64 columns, added.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
fn sums<B: ByteRows>(bytes: &[[__m512i; 4]; FOURS], by: &Multipliers, pair: usize) -> [__m512; 4] {
    let groups = groups_of_pair(pair, B::GROUP);
    let (mut high, mut low) = ([_mm512_setzero_si512(); 4], [_mm512_setzero_si512(); 4]);
    for four in 0..FOURS {
        let (mut by_high, mut by_low) = (by.high[four], by.low[four]);
        if !B::ALIKE {
            by_high = _mm512_permutexvar_epi32(groups, by_high);
            by_low = _mm512_permutexvar_epi32(groups, by_low);
        }
        for i in 0..4 {
            high[i] = _mm512_dpbusd_epi32(high[i], bytes[four][i], by_high);
            low[i] = _mm512_dpbusd_epi32(low[i], bytes[four][i], by_low);
        }
    }
    let (mut scale, mut offset) = (by.scale, by.offset);
    if !B::ALIKE {
        (scale, offset) = (_mm512_permutexvar_ps(groups, scale), _mm512_permutexvar_ps(groups, offset));
    }
    let mut values = [_mm512_setzero_ps(); 4];
    for i in 0..4 {
        let both = _mm512_cvtepi32_ps(_mm512_add_epi32(_mm512_slli_epi32::<8>(high[i]), low[i]));
        values[i] = if B::OFFSETS { _mm512_fmadd_ps(both, scale, offset) } else { _mm512_mul_ps(both, scale) };
    }
    let [a, b, c, d] = values;
    // Quarter q of each holds columns of 16q to 16q + 15.
    let (ab, cd) = (_mm512_shuffle_f32x4::<0x44>(a, b), _mm512_shuffle_f32x4::<0x44>(c, d));
    let (ab_high, cd_high) = (_mm512_shuffle_f32x4::<0xee>(a, b), _mm512_shuffle_f32x4::<0xee>(c, d));
    [
        _mm512_shuffle_f32x4::<0x88>(ab, cd),
        _mm512_shuffle_f32x4::<0xdd>(ab, cd),
        _mm512_shuffle_f32x4::<0x88>(ab_high, cd_high),
        _mm512_shuffle_f32x4::<0xdd>(ab_high, cd_high),
    ]
}

/// Adds 64 values, or the first `n` of them if they are not `WHOLE`.
///
/// # Safety
/// They must be writable; AVX-512.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
unsafe fn add_to<const WHOLE: bool>(to: *mut f32, values: [__m512; 4], n: usize) {
    for i in 0..4 {
        let at = to.wrapping_add(i * LANES);
        // SAFETY: the contract is the caller's; the mask ends at the last value.
        unsafe {
            if WHOLE {
                _mm512_storeu_ps(at, _mm512_add_ps(_mm512_loadu_ps(at), values[i]));
            } else {
                let mask = upto16(n.saturating_sub(i * LANES));
                _mm512_mask_storeu_ps(at, mask, _mm512_add_ps(_mm512_maskz_loadu_ps(mask, at), values[i]));
            }
        }
    }
}

/// Some rows that are added for some activations.
struct Group<'a, const T: usize> {
    a: &'a AxpyRows,
    rows: [*const u8; ROWS],
    /// The rows of the next call: hardware prefetch starts anew with every row.
    next: [*const u8; ROWS],
    activations: Range<usize>,
    by: [Multipliers; T],
}

impl<const T: usize> Group<'_, T> {
    /// Adds a pair of chunks, `n` columns if they are not `WHOLE`.
    ///
    /// # Safety
    /// They must exist in the rows, which must be readable, and in the result; AVX512-VNNI.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
    unsafe fn add<B: ByteRows, const WHOLE: bool>(&self, span: usize, pair: usize, n: usize) {
        let a = self.a;
        if self.activations.start == 0 && pair * B::BYTES % LINE < B::BYTES {
            let at = (span * (SPAN / PAIR) + pair) * B::BYTES;
            for r in 0..ROWS {
                prefetch(self.next[r].wrapping_add(at), false);
            }
        }
        // SAFETY: the contract is the caller's.
        unsafe {
            let mut bytes = [[_mm512_setzero_si512(); 4]; FOURS];
            for four in 0..FOURS {
                for r in 0..4 {
                    bytes[four][r] = B::pair::<WHOLE>(self.rows[4 * four + r], a.rows.cols, span, pair);
                }
                bytes[four] = in_turns(bytes[four]);
            }
            let to = a.out.add(span * SPAN + pair * PAIR - a.start);
            let count = if T == 1 { 1 } else { self.activations.len() };
            for t in 0..count {
                let to = to.add((self.activations.start + t) * a.out_stride);
                add_to::<WHOLE>(to, sums::<B>(&bytes, &self.by[t], pair), n);
            }
        }
    }
}

/// Adds up to eight rows, from row `j` of the set on, for some activations: one, or `T` at most.
///
/// # Safety
/// See [`AxpyRowsFn`](super::AxpyRowsFn); `j < count`, the activations must exist; AVX512-VNNI.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
unsafe fn group<B: ByteRows, const T: usize>(a: &AxpyRows, j: usize, activations: Range<usize>) {
    let count = ROWS.min(a.rows.count - j);
    let (cols, end) = (a.rows.cols, a.start + a.cols);
    let (tokens, first) = (activations.len(), a.start / SPAN);
    let mut coefficients = [[0.0f32; ROWS]; T];
    let mut scales = [Scales::default(); ROWS];
    // SAFETY: rows j..j + count are in the set, and the activations exist; pairs start below `end`, and what is beyond it is
    // not written.
    unsafe {
        let mut group = Group {
            a,
            // Where there are fewer rows, the first one again, times zero.
            rows: std::array::from_fn(|r| a.rows.row(if r < count { j + r } else { j })),
            next: std::array::from_fn(|r| a.rows.row((j + ROWS + r).min(a.rows.count - 1))),
            activations,
            by: [Multipliers::none(); T],
        };
        for t in 0..tokens {
            for r in 0..count {
                coefficients[t][r] = a.coefficient(group.activations.start + t, j + r);
            }
        }
        for span in first..end.div_ceil(SPAN) {
            if !B::ALIKE || span == first {
                for r in 0..ROWS {
                    B::scales(group.rows[r], cols, span, &mut scales[r]);
                }
                for t in 0..tokens {
                    group.by[t] = Multipliers::of::<B>(&scales, &coefficients[t]);
                }
            }
            let left = end - span * SPAN;
            if left >= SPAN {
                each_chunk! { constant SPAN / PAIR, pair => { group.add::<B, true>(span, pair, PAIR); } }
            } else {
                for pair in 0..left.div_ceil(PAIR) {
                    group.add::<B, false>(span, pair, left - pair * PAIR);
                }
            }
        }
    }
}

/// # Safety
/// See [`AxpyRowsFn`](super::AxpyRowsFn); AVX512-VNNI.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
unsafe fn axpy<B: ByteRows>(a: &AxpyRows) {
    for j in (0..a.rows.count).step_by(ROWS) {
        for t in (0..a.m).step_by(TILE) {
            let activations = t..a.m.min(t + TILE);
            // SAFETY: the contract is the caller's; the rows and activations are in range.
            unsafe {
                match activations.len() {
                    1 => group::<B, 1>(a, j, activations),
                    _ => group::<B, TILE>(a, j, activations),
                }
            }
        }
    }
}

/// # Safety
/// See [`AxpyRowsFn`](super::AxpyRowsFn); AVX512-VNNI.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
pub(crate) unsafe fn axpy_codes_avx512<F: Coded>(a: &AxpyRows) {
    // SAFETY: the contract is the caller's.
    unsafe { axpy::<F>(a) }
}

/// # Safety
/// See [`AxpyRowsFn`](super::AxpyRowsFn); AVX512-VNNI.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
pub(crate) unsafe fn axpy_int8_avx512(a: &AxpyRows) {
    // SAFETY: the contract is the caller's.
    unsafe { axpy::<Int8Rows>(a) }
}
