//! Attention over a span with AVX-512 and VBMI2: packed rows are expanded in registers, once for all heads that share
//! them.

use super::span::{self, BLOCK, Dense, Source, Span, prefetch};
use crate::dtype::{BF16, F16, F32, I8, code_size};
use crate::kv::PieceRows;
use crate::kv::block::{PackedRows, WORD, WORD_BITS, mask_at};
use crate::simd::avx512::Avx512;
use crate::simd::avx512_bitmap::next;
use std::arch::x86_64::*;

/// Packed rows, one word of the bitmap per pair of vectors.
#[derive(Clone, Copy)]
struct Packed<'a, const D: u8> {
    rows: PackedRows,
    /// The first element of each row.
    starts: &'a [*const u8; BLOCK],
}

/// A row that is being read: its bitmap, and its next element.
#[derive(Clone, Copy)]
struct PackedRow {
    masks: *const u8,
    next: *const u8,
}

impl<'a, const D: u8> Packed<'a, D> {
    /// Finds where rows start.
    ///
    /// # Safety
    /// The rows must be readable, and the CPU have POPCNT.
    #[inline]
    #[target_feature(enable = "popcnt")]
    unsafe fn open(rows: PackedRows, starts: &'a mut [*const u8; BLOCK]) -> Self {
        let mask_bytes = rows.layout.mask_bytes();
        let mut next = rows.elements;
        for (row, start) in starts[..rows.count].iter_mut().enumerate() {
            *start = next;
            for word in 0..mask_bytes / WORD {
                // SAFETY: every row has its words, and elements for their bits.
                unsafe {
                    let mask = mask_at(rows.masks, row * mask_bytes / WORD + word);
                    next = next.add(mask.count_ones() as usize * code_size(D));
                }
            }
        }
        Packed { rows, starts }
    }
}

impl<const D: u8> Source<Avx512> for Packed<'_, D> {
    type Cursor = PackedRow;

    #[inline]
    #[target_feature(enable = "popcnt")]
    unsafe fn at(self, row: usize, i: usize) -> PackedRow {
        // SAFETY: the caller vouches for the row, which has elements for the bits of its words.
        unsafe {
            let masks = self.rows.masks.add(row * self.rows.layout.mask_bytes());
            let mut next = *self.starts.get_unchecked(row);
            for word in 0..i / WORD_BITS {
                next = next.add(mask_at(masks, word).count_ones() as usize * code_size(D));
            }
            PackedRow { masks, next }
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi2,popcnt")]
    unsafe fn pair(self, row: &mut PackedRow, i: usize, _: usize) -> [__m512; 2] {
        // SAFETY: the row has a word for every pair, whose bits end with the head, an element for every bit, and
        // READ_AHEAD bytes after the last.
        unsafe {
            prefetch(row.next);
            if WORD_BITS * code_size(D) > 64 {
                prefetch(row.next.wrapping_add(64));
            }
            next::<D>(mask_at(row.masks, i / WORD_BITS), &mut row.next, false)
        }
    }

    #[inline(always)]
    unsafe fn scale(self, row: usize) -> f32 {
        // SAFETY: there is such a row.
        unsafe { self.rows.scale(row) }
    }
}

/// # Safety
/// See [`SpanFn`](span::SpanFn); to be called from a function with the features of these kernels.
#[inline(always)]
unsafe fn span<const D: u8>(a: &Span) {
    // SAFETY: the contract is the caller's; positions are read from first to last.
    unsafe {
        let mut state = span::begin::<Avx512, D>(a);
        let mut starts = [[std::ptr::null(); BLOCK]; 2];
        for piece in &a.pieces {
            let mut first = 0;
            while first < piece.count {
                let left = piece.count - first;
                first += match piece.rows {
                    PieceRows::Dense { .. } => {
                        let (count, keys, values) = a.dense_rows(piece, first);
                        let [keys, values] = [keys, values].map(|first| Dense::<D> {
                            first,
                            row_bytes: a.row_bytes,
                            head_dim: a.head_dim,
                        });
                        span::attend::<Avx512, Dense<D>, D>(a, &mut state, keys, values, count);
                        count
                    }
                    PieceRows::Packed { keys, values } => {
                        let (keys, values) = (keys.rows(first, left), values.rows(first, left));
                        let [key_starts, value_starts] = &mut starts;
                        let count = keys.count;
                        let (keys, values) = (Packed::<D>::open(keys, key_starts), Packed::open(values, value_starts));
                        span::attend::<Avx512, Packed<D>, D>(a, &mut state, keys, values, count);
                        count
                    }
                };
            }
        }
        span::finish::<Avx512, D>(a, &state);
    }
}

macro_rules! kernels {
    ($($name:ident: $dtype:expr;)*) => {$(
        /// # Safety
        /// See [`SpanFn`](span::SpanFn); AVX-512 with VBMI2.
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vbmi2,fma,popcnt")]
        pub(crate) unsafe fn $name(a: &Span) {
            // SAFETY: the contract is the caller's.
            unsafe { span::<{ $dtype }>(a) }
        }
    )*};
}

kernels! {
    span_f32_avx512_vbmi2: F32;
    span_f16_avx512_vbmi2: F16;
    span_bf16_avx512_vbmi2: BF16;
    span_i8_avx512_vbmi2: I8;
}
