//! Attention with AVX2: the code for all vector tiers.

use super::span::{self, Span};
use super::tiled::{self, Block, Engine, KEYS, Lanes, Rows, Softmax, Strip};
use super::widened;
use crate::dtype::{BF16, F16, F32, I8};
use crate::parallel::Scratch;
use crate::simd::avx2::Avx2;
use crate::simd::vector::Vector;
use std::ops::Range;

// 2 × 4 vectors of sums.
widened::widened!("avx2,fma,f16c", Avx2, 2, 4);

macro_rules! kernels {
    ($($span:ident, $block:ident: $dtype:expr;)*) => {$(
        /// # Safety
        /// See [`SpanFn`](span::SpanFn); AVX2.
        #[target_feature(enable = "avx2,fma,f16c")]
        pub(crate) unsafe fn $span(a: &Span) {
            // SAFETY: the contract is the caller's.
            unsafe { span::span::<Avx2, { $dtype }>(a) }
        }

        /// # Safety
        /// See [`BlockFn`](tiled::BlockFn); AVX2.
        pub(crate) unsafe fn $block(scratch: &Scratch, block: &Block) {
            // SAFETY: the contract is the caller's.
            unsafe { tiled::attend::<Widened<{ $dtype }>>(scratch, block) }
        }
    )*};
}

kernels! {
    span_f32_avx2, block_f32_avx2: F32;
    span_f16_avx2, block_f16_avx2: F16;
    span_bf16_avx2, block_bf16_avx2: BF16;
    span_i8_avx2, block_i8_avx2: I8;
}
