//! Rotary position embedding with AVX2: the portable lanes, vectorised.

use super::lanes;
use crate::simd::vectorised;

vectorised! { "avx2,fma,f16c":
    rope_f32_avx2 = lanes::rope, (x: &mut [f32], head_dim: usize, cos: &[f32], sin: &[f32]);
}
