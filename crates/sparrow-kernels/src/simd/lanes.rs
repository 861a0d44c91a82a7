//! Branch-free scalar functions and lane-wise sums that vectorise when inlined into a function with target features.
//!
//! `FMA` says whether the surrounding features have a fused multiply-add; without it `mul_add` would be a slow library
//! call.

// Without vector tiers only the scalar fallbacks and the tests use some of these.
#![cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]

/// Independent partial sums of a reduction: two AVX-512 vectors, four AVX2 ones.
pub(crate) const SUMS: usize = 32;

/// `a * b + c`.
#[inline(always)]
pub(crate) fn fma<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

/// eˣ within 2 ulp (subnormal results: within 1 subnormal step more); overflow gives infinity, NaN stays NaN.
///
/// Cephes `expf`: x = n·ln 2 + r with |r| ≤ ½ ln 2, a polynomial of degree 6 for eʳ, then two scalings by 2^(n/2) so
/// that neither leaves the range of `f32`.
#[inline(always)]
pub(crate) fn exp<const FMA: bool>(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
    // Comparisons that are false for NaN keep it.
    let x = if x > 89.0 { 89.0 } else { x };
    let x = if x < -104.0 { -104.0 } else { x };
    let shifted = fma::<FMA>(x, std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = fma::<FMA>(n, -0.693_359_4, x);
    let r = fma::<FMA>(n, 2.121_944_4e-4, r);
    let p = 1.987_569_1e-4;
    let p = fma::<FMA>(p, r, 1.398_199_9e-3);
    let p = fma::<FMA>(p, r, 8.333_452e-3);
    let p = fma::<FMA>(p, r, 4.166_579_6e-2);
    let p = fma::<FMA>(p, r, 1.666_666_5e-1);
    let p = fma::<FMA>(p, r, 5e-1);
    let p = fma::<FMA>(p, r * r, r) + 1.0;
    let n = (shifted.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32);
    let half = n >> 1;
    let scale = |e: i32| f32::from_bits((e.wrapping_add(127) as u32) << 23);
    p * scale(half) * scale(n.wrapping_sub(half))
}

/// tanh x: absolute error below 2⁻²³.
#[inline(always)]
pub(crate) fn tanh<const FMA: bool>(x: f32) -> f32 {
    let e = exp::<FMA>(-2.0 * x.abs());
    ((1.0 - e) / (1.0 + e)).copysign(x)
}

/// erf x, the error function, within a few ulp.
///
/// Two minimax polynomials after N. Juffa: x·p(x²) up to 475/512, 1 − exp(q(|x|)) beyond.
#[inline(always)]
pub(crate) fn erf<const FMA: bool>(x: f32) -> f32 {
    let t = x.abs();
    let s = x * x;
    let r = fma::<FMA>(-1.728_534_7e-5, t, 3.831_971_3e-4);
    let u = fma::<FMA>(-3.883_964_4e-3, t, 2.425_462_2e-2);
    let r = fma::<FMA>(r, s, u);
    let r = fma::<FMA>(r, t, -1.067_778_8e-1);
    let r = fma::<FMA>(r, t, -6.348_467e-1);
    let r = fma::<FMA>(r, t, -1.287_175_1e-1);
    let r = fma::<FMA>(r, t, -t);
    let large = (1.0 - exp::<FMA>(r)).copysign(x);
    let r = -5.967_617e-4;
    let r = fma::<FMA>(r, s, 4.991_194_2e-3);
    let r = fma::<FMA>(r, s, -2.676_813_5e-2);
    let r = fma::<FMA>(r, s, 1.128_199_2e-1);
    let r = fma::<FMA>(r, s, -3.761_253_4e-1);
    let r = fma::<FMA>(r, s, 1.283_791_7e-1);
    let small = fma::<FMA>(r, x, x);
    // For NaN the comparison is false, and `small` is NaN.
    if t > 0.927_734_4 { large } else { small }
}

/// Σ f(xᵢ) in [`SUMS`] interleaved partial sums.
#[inline(always)]
pub(crate) fn sum_by(x: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut sums = [0.0f32; SUMS];
    let (chunks, rest) = x.as_chunks::<SUMS>();
    for chunk in chunks {
        for lane in 0..SUMS {
            sums[lane] += f(chunk[lane]);
        }
    }
    for (lane, &value) in rest.iter().enumerate() {
        sums[lane] += f(value);
    }
    fold(sums, |a, b| a + b)
}

/// The result of an operation on all lanes, pairwise.
#[inline(always)]
pub(crate) fn fold(mut lanes: [f32; SUMS], op: impl Fn(f32, f32) -> f32) -> f32 {
    let mut width = SUMS / 2;
    while width > 0 {
        for lane in 0..width {
            lanes[lane] = op(lanes[lane], lanes[lane + width]);
        }
        width /= 2;
    }
    lanes[0]
}

/// The largest value, NaN if there is any; −∞ for none.
#[inline(always)]
pub(crate) fn max(x: &[f32]) -> f32 {
    let mut best = [f32::NEG_INFINITY; SUMS];
    let mut nan = [false; SUMS];
    let (chunks, rest) = x.as_chunks::<SUMS>();
    for chunk in chunks {
        for lane in 0..SUMS {
            let value = chunk[lane];
            best[lane] = if value > best[lane] { value } else { best[lane] };
            nan[lane] |= value.is_nan();
        }
    }
    let mut largest = f32::NEG_INFINITY;
    for &value in rest.iter().chain(&best) {
        if value.is_nan() {
            return f32::NAN;
        }
        largest = largest.max(value);
    }
    if nan.contains(&true) { f32::NAN } else { largest }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ulp_error(got: f32, want: f64) -> f64 {
        let ulp = f64::from(f32::MIN_POSITIVE * f32::EPSILON).max(2f64.powf(want.abs().log2().floor() - 23.0));
        (f64::from(got) - want).abs() / ulp
    }

    #[test]
    fn exp_is_within_two_ulp() {
        let mut worst = [0.0f64; 2];
        for i in -890_000..890_000 {
            let x = i as f32 * 1e-4;
            let want = f64::from(x).exp();
            if want > f64::from(f32::MAX) {
                continue;
            }
            worst[0] = worst[0].max(ulp_error(exp::<false>(x), want));
            worst[1] = worst[1].max(ulp_error(exp::<true>(x), want));
        }
        assert!(worst[0] <= 2.0 && worst[1] <= 2.0, "{worst:?}");
    }

    #[test]
    fn exp_at_the_ends() {
        for f in [exp::<false>, exp::<true>] {
            assert_eq!(f(0.0), 1.0);
            assert_eq!(f(-0.0), 1.0);
            assert_eq!(f(f32::INFINITY), f32::INFINITY);
            assert_eq!(f(f32::NEG_INFINITY), 0.0);
            assert_eq!(f(1e30), f32::INFINITY);
            assert_eq!(f(-1e30), 0.0);
            assert!(f(f32::NAN).is_nan());
            assert!(f(88.7).is_finite());
            assert!(f(-100.0) > 0.0);
        }
    }

    /// erf by its Taylor series, accurate for |x| ≤ 3.
    fn erf_series(x: f64) -> f64 {
        let (mut term, mut sum) = (x, x);
        for n in 1..200 {
            term *= -x * x / f64::from(n);
            sum += term / f64::from(2 * n + 1);
        }
        sum * 2.0 / std::f64::consts::PI.sqrt()
    }

    #[test]
    fn erf_is_within_four_ulp() {
        let mut worst = [0.0f64; 2];
        for i in -30_000..=30_000 {
            let x = i as f32 * 1e-4;
            let want = erf_series(f64::from(x));
            worst[0] = worst[0].max(ulp_error(erf::<false>(x), want));
            worst[1] = worst[1].max(ulp_error(erf::<true>(x), want));
        }
        assert!(worst[0] <= 4.0 && worst[1] <= 4.0, "{worst:?}");
        for x in [4.0, 10.0, 15.0, 1e10, f32::INFINITY] {
            assert_eq!(erf::<true>(x), 1.0, "{x}");
            assert_eq!(erf::<true>(-x), -1.0, "{x}");
        }
        assert!(erf::<true>(f32::NAN).is_nan());
    }

    #[test]
    fn tanh_is_close() {
        for i in -20_000..=20_000 {
            let x = i as f32 * 1e-3;
            let error = (f64::from(tanh::<true>(x)) - f64::from(x).tanh()).abs();
            assert!(error <= 1.2e-7, "{x} {error}");
        }
        assert_eq!(tanh::<true>(f32::NEG_INFINITY), -1.0);
        assert!(tanh::<true>(f32::NAN).is_nan());
    }

    #[test]
    fn sums_and_maxima() {
        for n in [0, 1, 31, 32, 33, 64, 100] {
            let x: Vec<f32> = (0..n).map(|i| i as f32 - 7.0).collect();
            assert_eq!(sum_by(&x, |v| v), x.iter().sum::<f32>());
            assert_eq!(max(&x), x.iter().copied().fold(f32::NEG_INFINITY, f32::max));
            for at in 0..n {
                let mut y = x.clone();
                y[at] = f32::NAN;
                assert!(max(&y).is_nan());
            }
        }
    }
}
