//! Sign agreement with AVX-512: the portable loop, vectorised.

use super::scalar;
use crate::simd::vectorised;

vectorised! { "avx512f,avx512bw,avx512vl,avx512dq,fma,popcnt":
    sign_agreement_avx512 = scalar::sign_agreement, (x: &[u64], w: &[u64], k: usize, out: &mut [f32]);
}
