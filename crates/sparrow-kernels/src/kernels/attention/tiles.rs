//! The products of tiled attention in bf16: queries and weights are rounded, keys and values are as stored (int8 fits bf16
//! exactly, its scales go into scores and weights).
//!
//! A product of tiles is C\[16, 16\] += A\[16 rows, 32\] · B\[32, 16 columns\], B in pairs: row p holds elements 2p and
//! 2p + 1 of all columns. Scores `[keys, queries]` are keys (A, as stored) times transposed queries (B); sums
//! `[head_dim, queries]` are transposed values (A) times weights (B). Always 2 × 2 tiles of C, so an operand is two
//! tiles per 32 elements of the inner dimension, one after the other.

use super::tiled::{self, Engine, KEYS, Lanes, Rows, STEP, STRIP, Softmax, Strip};
use crate::dtype::layout::int8_scale;
use crate::dtype::{I8, code_size};
use crate::simd::avx512::{transpose16, upto16};
use crate::simd::tiles::{TILE, bits, load_rounded};
use std::arch::x86_64::*;
use std::marker::PhantomData;
use std::ops::Range;

/// Elements of the inner dimension in a tile.
const INNER: usize = 32;

/// What multiplies tiles.
///
/// # Safety
/// `product` may write only C.
pub(super) unsafe trait Product {
    /// Before the first and after the last product of a task.
    ///
    /// # Safety
    /// The CPU must have the instructions; so for all methods.
    unsafe fn start() {}
    /// See [`start`](Self::start).
    ///
    /// # Safety
    /// See above.
    unsafe fn stop() {}

    /// Products of inner length `INNER * steps` of A and B into C, 32 rows, or added to it.
    ///
    /// # Safety
    /// Between start and stop; operands must be packed, C must be 32 rows.
    unsafe fn product(a: *const u8, b: *const u8, steps: usize, add: bool, c: *mut Lanes);
}

/// Keys and values of the type whose discriminant is `D`, bf16 or int8, multiplied by `P`.
pub(super) struct Tiles<const D: u8, P>(PhantomData<P>);

/// `n` elements of a stored row as 32 bf16, zeros after them.
///
/// # Safety
/// AVX-512; they must be readable.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
unsafe fn load<const D: u8>(p: *const u8, n: usize) -> __m512i {
    let mask = if n >= INNER { __mmask32::MAX } else { (1u32 << n) - 1 };
    // SAFETY: the mask ends at the last element.
    unsafe {
        if D == I8 {
            let bytes = _mm256_maskz_loadu_epi8(mask, p.cast());
            let low = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm256_castsi256_si128(bytes)));
            let high = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm256_extracti128_si256::<1>(bytes)));
            bits(_mm512_cvtne2ps_pbh(high, low))
        } else {
            _mm512_maskz_loadu_epi16(mask, p.cast())
        }
    }
}

// SAFETY: an operand is two tiles per 32 elements of its inner dimension: queries of head_dim, keys of head_dim for
// every 32 keys, values of the tile's keys for every 32 elements of head_dim, weights of the tile's keys.
unsafe impl<const D: u8, P: Product> Engine for Tiles<D, P> {
    fn sizes(head_dim: usize) -> [usize; 4] {
        let steps = head_dim.div_ceil(INNER);
        let keys = KEYS / INNER * steps * 2 * TILE;
        [steps * 2 * TILE, keys, keys, KEYS / INNER * 2 * TILE]
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
    unsafe fn pack_queries(queries: &[*const f32], head_dim: usize, to: *mut u8) {
        for step in 0..head_dim.div_ceil(INNER) {
            for tile in 0..2 {
                let mut rows = [_mm512_setzero_si512(); 16];
                for (row, query) in rows.iter_mut().zip(queries.iter().skip(tile * 16)) {
                    // SAFETY: a query has head_dim values.
                    *row = unsafe { load_rounded(query.add(step * INNER), head_dim - step * INNER) };
                }
                for (r, row) in transpose16(rows).into_iter().enumerate() {
                    // SAFETY: the strip has two tiles per step.
                    unsafe { _mm512_store_si512(to.add((step * 2 + tile) * TILE + r * 64).cast(), row) };
                }
            }
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
    unsafe fn pack_keys(rows: &Rows, to: *mut u8, scales: &mut [f32; KEYS]) {
        let (d, steps) = (rows.head_dim, rows.head_dim.div_ceil(INNER));
        for key in 0..rows.count.next_multiple_of(STEP) {
            let from = rows.first.wrapping_add(key * rows.row_bytes);
            for step in 0..steps {
                let tile = (key / 32 * steps + step) * 2 + key % 32 / 16;
                // SAFETY: key `key` has d elements; the panel has two tiles per step and 32 keys.
                unsafe {
                    let row = if key < rows.count {
                        load::<D>(from.add(step * INNER * code_size(D)), d - step * INNER)
                    } else {
                        _mm512_setzero_si512()
                    };
                    _mm512_store_si512(to.add(tile * TILE + key % 16 * 64).cast(), row);
                }
            }
            if D == I8 && key < rows.count {
                // SAFETY: as above.
                scales[key] = unsafe { int8_scale(from, d) };
            }
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
    unsafe fn pack_values(rows: &Rows, to: *mut u8, scales: &mut [f32; KEYS]) {
        let d = rows.head_dim;
        for step in 0..rows.count.div_ceil(INNER) {
            for column in 0..d.div_ceil(32) {
                let (mut low, mut high) = ([_mm512_setzero_si512(); 16], [_mm512_setzero_si512(); 16]);
                for pair in 0..16 {
                    let mut two = [_mm512_setzero_si512(); 2];
                    for (i, row) in two.iter_mut().enumerate() {
                        let key = step * INNER + 2 * pair + i;
                        if key < rows.count {
                            let at = key * rows.row_bytes + column * 32 * code_size(D);
                            // SAFETY: value `key` has d elements.
                            *row = unsafe { load::<D>(rows.first.add(at), d - column * 32) };
                        }
                    }
                    low[pair] = _mm512_unpacklo_epi16(two[0], two[1]);
                    high[pair] = _mm512_unpackhi_epi16(two[0], two[1]);
                }
                // Unpacking works within quarters of a vector: lane l of `low` holds element l / 4 * 8 + l % 4, `high`
                // the one 4 further.
                let (low, high) = (transpose16(low), transpose16(high));
                for l in 0..16 {
                    let element = l / 4 * 8 + l % 4;
                    let tile = (column * (KEYS / INNER) + step) * 2 + element / 16;
                    // SAFETY: a column of 32 elements has two tiles per step of keys.
                    unsafe {
                        let to = to.add(tile * TILE + element % 16 * 64);
                        _mm512_store_si512(to.cast(), low[l]);
                        _mm512_store_si512(to.add(4 * 64).cast(), high[l]);
                    }
                }
            }
        }
        if D == I8 {
            for key in 0..rows.count {
                // SAFETY: as above.
                scales[key] = unsafe { int8_scale(rows.first.add(key * rows.row_bytes), d) };
            }
        }
    }

    unsafe fn start() {
        // SAFETY: the contract is the caller's.
        unsafe { P::start() }
    }

    unsafe fn stop() {
        // SAFETY: as above.
        unsafe { P::stop() }
    }

    #[inline]
    unsafe fn scores(q: *const u8, keys: *const u8, head_dim: usize, range: Range<usize>, scores: &mut [Lanes; KEYS]) {
        let steps = head_dim.div_ceil(INNER);
        for key in range.step_by(STEP) {
            // SAFETY: the keys are packed by 32, and the scores have 32 rows from here.
            unsafe { P::product(keys.add(key / 32 * steps * 2 * TILE), q, steps, false, &raw mut scores[key]) };
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,fma")]
    unsafe fn weigh(softmax: &Softmax, strip: &mut Strip, scores: &mut [Lanes; KEYS]) {
        tiled::weigh(softmax, strip, scores);
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,fma")]
    unsafe fn shrink(sums: &mut [Lanes], by: &Lanes) {
        tiled::shrink(sums, by);
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
    unsafe fn accumulate(
        weights: &[Lanes; KEYS],
        packed: *mut u8,
        values: *const u8,
        head_dim: usize,
        range: Range<usize>,
        sums: &mut [Lanes],
    ) {
        // Pairs of rows, rounded, then interleaved.
        let interleave: [u16; 32] = std::array::from_fn(|i| (i / 2 + i % 2 * 16) as u16);
        // SAFETY: the array is 64 bytes.
        let interleave = unsafe { _mm512_loadu_si512(interleave.as_ptr().cast()) };
        for key in range.clone().step_by(2) {
            for tile in 0..STRIP / 16 {
                // SAFETY: rows of weights are STRIP values, an even number of them; the operand has two tiles per 32
                // keys.
                unsafe {
                    let even = _mm512_load_ps(weights[key].as_ptr().add(tile * 16));
                    let odd = _mm512_load_ps(weights[key + 1].as_ptr().add(tile * 16));
                    let both = _mm512_permutexvar_epi16(interleave, bits(_mm512_cvtne2ps_pbh(odd, even)));
                    _mm512_store_si512(packed.add((key / 32 * 2 + tile) * TILE + key % 32 * 32).cast(), both);
                }
            }
        }
        let steps = range.len() / INNER;
        for column in 0..head_dim.div_ceil(32) {
            // SAFETY: two tiles per step of keys; sums have 32 rows from here.
            unsafe {
                let a = values.add((column * (KEYS / INNER) + range.start / INNER) * 2 * TILE);
                let b = packed.add(range.start / INNER * 2 * TILE);
                P::product(a, b, steps, true, &raw mut sums[column * 32]);
            }
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    unsafe fn finish(sums: &[Lanes], shares: &Lanes, head_dim: usize, out: &[*mut f32]) {
        for i in (0..head_dim).step_by(16) {
            let mask = upto16(head_dim - i);
            for tile in 0..STRIP / 16 {
                let mut rows = [_mm512_setzero_si512(); 16];
                for (row, sums) in rows.iter_mut().zip(&sums[i..]) {
                    // SAFETY: a row has STRIP values.
                    *row = unsafe { _mm512_load_si512(sums.as_ptr().add(tile * 16).cast()) };
                }
                let columns = transpose16(rows);
                for ((column, out), share) in
                    columns.into_iter().zip(&out[out.len().min(tile * 16)..]).zip(&shares[tile * 16..])
                {
                    let value = _mm512_mul_ps(_mm512_castsi512_ps(column), _mm512_set1_ps(*share));
                    // SAFETY: head_dim values are writable, at which the mask ends.
                    unsafe { _mm512_mask_storeu_ps(out.add(i), mask, value) };
                }
            }
        }
    }
}
