//! Attention with AVX-512: the code for all vector tiers.

use super::span::{self, Span};
use super::tiled::{self, Block, Engine, KEYS, Lanes, Rows, Softmax, Strip};
use super::widened;
use crate::dtype::{BF16, F16, F32, I8};
use crate::parallel::Scratch;
use crate::simd::avx512::Avx512;
use crate::simd::vector::Vector;
use std::ops::Range;

// 8 × 2 vectors of sums.
widened::widened!("avx512f,avx512bw,avx512vl,avx512dq,fma", Avx512, 8, 2);

macro_rules! kernels {
    ($($span:ident, $block:ident: $dtype:expr;)*) => {$(
        /// # Safety
        /// See [`SpanFn`](span::SpanFn); AVX-512.
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,fma")]
        pub(crate) unsafe fn $span(a: &Span) {
            // SAFETY: the contract is the caller's.
            unsafe { span::span::<Avx512, { $dtype }>(a) }
        }

        /// # Safety
        /// See [`BlockFn`](tiled::BlockFn); AVX-512.
        pub(crate) unsafe fn $block(scratch: &Scratch, block: &Block) {
            // SAFETY: the contract is the caller's.
            unsafe { tiled::attend::<Widened<{ $dtype }>>(scratch, block) }
        }
    )*};
}

kernels! {
    span_f32_avx512, block_f32_avx512: F32;
    span_f16_avx512, block_f16_avx512: F16;
    span_bf16_avx512, block_bf16_avx512: BF16;
    span_i8_avx512, block_i8_avx512: I8;
}
