//! Int4 rows widened to `f32` with AVX-512.

use super::avx512::{prefetch, upto16};
use crate::dtype::layout::{BLOCK, Int4, MIDDLE};
use std::arch::x86_64::*;

/// Elements whose scales are widened together: the groups of 32 that fill one vector.
pub(crate) const SPAN: usize = 512;

/// The scales of the groups of one span, and what is added for their zero points.
#[derive(Clone, Copy, Default)]
pub(crate) struct Scales {
    scales: [f32; 16],
    /// -zero point · scale; unused without zero points.
    offsets: [f32; 16],
}

impl Scales {
    /// Those of the span that starts at element `start`, a multiple of [`SPAN`], of a row of `cols` elements.
    ///
    /// # Safety
    /// The row must be readable, `start` below `cols`; AVX-512.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    pub(crate) unsafe fn load<const D: u8>(row: *const u8, cols: usize, start: usize) -> Scales {
        let int4 = Int4::of(D);
        let first = start / int4.group;
        let count = (int4.groups(cols) - first).min(SPAN / int4.group);
        let mask = upto16(count);
        let mut all = Scales::default();
        // SAFETY: the row has scales and zero points for `count` groups from `first` on, which the masks respect.
        unsafe {
            let halves = row.add(int4.scales_at(cols) + 2 * first).cast();
            let scales = _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, halves));
            _mm512_storeu_ps(all.scales.as_mut_ptr(), scales);
            if int4.zero_points {
                let zeros = _mm_maskz_loadu_epi8(mask, row.add(int4.zeros_at(cols) + first).cast());
                let zeros = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(zeros));
                let offsets = _mm512_mul_ps(_mm512_sub_ps(_mm512_setzero_ps(), zeros), scales);
                _mm512_storeu_ps(all.offsets.as_mut_ptr(), offsets);
            }
        }
        all
    }

    /// Asks for the nibbles of one span of a row that comes next, and with the first span for all its scales, which lie
    /// at its end. The address may be any.
    #[inline(always)]
    pub(crate) fn prefetch<const D: u8>(row: *const u8, cols: usize, start: usize) {
        let int4 = Int4::of(D);
        for line in (0..SPAN / 2).step_by(64) {
            prefetch(row.wrapping_add(start / 2 + line), false);
        }
        if start == 0 {
            for at in (int4.scales_at(cols)..int4.row_bytes(cols)).step_by(64) {
                prefetch(row.wrapping_add(at), false);
            }
        }
    }

    /// The 32 elements from `c`, a multiple of 32 in this span.
    ///
    /// # Safety
    /// The row must be readable and have the block; AVX-512.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    pub(crate) unsafe fn block<const D: u8>(&self, row: *const u8, c: usize) -> [__m512; 2] {
        let int4 = Int4::of(D);
        let group = c % SPAN / int4.group;
        let scale = _mm512_set1_ps(self.scales[group]);
        let first = if int4.zero_points { 0.0 } else { -f32::from(MIDDLE) };
        let steps: [f32; 16] = std::array::from_fn(|i| i as f32 + first);
        // SAFETY: a block is 16 bytes; the array has 16 values.
        let (bytes, steps) =
            unsafe { (_mm_loadu_si128(row.add(c / BLOCK * (BLOCK / 2)).cast()), _mm512_loadu_ps(steps.as_ptr())) };
        let values = if int4.zero_points {
            _mm512_fmadd_ps(steps, scale, _mm512_set1_ps(self.offsets[group]))
        } else {
            _mm512_mul_ps(steps, scale)
        };
        // The lookup takes the low four bits of each index.
        let low = _mm512_cvtepu8_epi32(bytes);
        let high = _mm512_srli_epi32::<4>(low);
        [_mm512_permutexvar_ps(low, values), _mm512_permutexvar_ps(high, values)]
    }
}
