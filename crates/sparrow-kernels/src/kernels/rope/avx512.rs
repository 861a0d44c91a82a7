//! Rotary position embedding with AVX-512: the portable lanes, vectorised.

use super::lanes;
use crate::simd::vectorised;

vectorised! { "avx512f,avx512bw,avx512vl,avx512dq,fma":
    rope_f32_avx512 = lanes::rope, (x: &mut [f32], head_dim: usize, cos: &[f32], sin: &[f32]);
}
