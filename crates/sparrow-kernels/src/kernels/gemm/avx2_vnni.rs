//! The blocked products of integers with AVX-VNNI, which desktop CPUs have that lack AVX-512: those of AVX2, with one
//! instruction for the product of two pairs and its sum.

use super::avx2::Widened;
use super::codes::codes;
use super::{Engine, Gemm, Layout, Outputs, Panel};
use crate::dtype::coded::{SPAN, Scales, each_chunk};
use crate::dtype::{Coded, F32};
use crate::parallel::Workers;
use crate::simd::prefetch;
use std::arch::x86_64::*;
use std::ops::Range;

codes! { "avx2,fma,f16c,avxvnni", ops, gemm_codes_avx2_vnni, gemm_i8_avx2_vnni }

/// The vectors of AVX2, but for sums of pairs.
mod ops {
    pub(super) use crate::kernels::gemm::avx2::ops::*;
    use std::arch::x86_64::*;

    crate::simd::wrapped! { "avx2,fma,f16c,avxvnni":
        add_pairs(sum: __m256i, w: __m256i, x: __m256i) -> __m256i = _mm256_dpwssd_avx_epi32(sum, w, x);
    }
}
