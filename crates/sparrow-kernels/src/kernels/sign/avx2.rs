//! Sign agreement with AVX2: the portable loop, vectorised.

use super::scalar;
use crate::simd::vectorised;

vectorised! { "avx2,fma,f16c,popcnt":
    sign_agreement_avx2 = scalar::sign_agreement, (x: &[u64], w: &[u64], k: usize, out: &mut [f32]);
}
