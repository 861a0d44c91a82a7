//! Unnormalised probabilities.

/// Weights of logits in a softmax: 1 for the largest logit, the others as large as they are likely beside it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Softmax {
    /// The largest logit.
    pub top: f32,
    /// What logits are divided by; above 0.
    pub temperature: f32,
}

impl Softmax {
    /// The weight of a logit that is at most `top`; infinite ones share what there is, NaN has none.
    #[inline]
    pub fn weight(self, logit: f32) -> f32 {
        // The difference of equal infinities is NaN.
        let below = zero_unless(logit != self.top, logit - self.top);
        exp(below / self.temperature)
    }

    /// The sum of all weights that are at least `least`.
    pub fn total(self, logits: &[f32], least: f32) -> f64 {
        let kept = |logit: f32| {
            let weight = self.weight(logit);
            zero_unless(weight >= least, weight)
        };
        let (blocks, rest) = logits.as_chunks::<16>();
        let mut last = [f32::NAN; 16];
        last[..rest.len()].copy_from_slice(rest);
        let mut sums = [0.0; 16];
        for block in blocks.iter().chain([&last]) {
            let weights = block.map(kept);
            sums.iter_mut().zip(weights).for_each(|(sum, weight)| *sum += f64::from(weight));
        }
        sums.iter().sum()
    }
}

/// eˣ for x ≤ 0 within 2 units in the last place; 0 for NaN and where the result is about to be subnormal.
///
/// As in Cephes, 2ⁿ·eʳ with |r| ≤ ½ ln 2. It is here because it is the same on every platform, which the system's is not,
/// and because the compiler makes vectors of it.
#[inline]
fn exp(x: f32) -> f32 {
    // Adding it rounds to an integer, which is then in the low bits.
    const ROUND: f32 = 1.5 * (1 << 23) as f32;
    // ln 2 in two parts; products of n and the first are exact.
    const LN_2: [f32; 2] = [0.693_359_4, -2.121_944_4e-4];
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (x - n * LN_2[0]) - n * LN_2[1];
    let series = [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0];
    let power = series.iter().fold(1.0 / 5040.0, |sum, c| sum * r + c);
    let scale = f32::from_bits((shifted.to_bits() << 23).wrapping_add(1.0f32.to_bits()));
    zero_unless(x >= -87.0, power * scale)
}

/// `x`, or 0: without a branch, which would keep the compiler from making vectors.
#[inline]
fn zero_unless(condition: bool, x: f32) -> f32 {
    f32::from_bits(x.to_bits() & u32::from(condition).wrapping_neg())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_near_that_of_f64() {
        for i in 0..=870_000 {
            let x = -(i as f32) * 1e-4;
            let (found, expected) = (f64::from(exp(x)), f64::from(x).exp());
            assert!(
                (found - expected).abs() <= 2.0 * f64::from(f32::EPSILON) * expected,
                "{x}: {found}, not {expected}"
            );
        }
        assert_eq!(exp(0.0), 1.0);
        assert!([-87.1, -1e30, f32::MIN, f32::NEG_INFINITY, f32::NAN].iter().all(|&x| exp(x) == 0.0));
    }

    #[test]
    fn totals_leave_out_what_is_too_small() {
        let softmax = Softmax { top: 2.0, temperature: 0.5 };
        let logits: Vec<f32> = (0..19).map(|i| 2.0 - i as f32 / 4.0).chain([f32::NAN, f32::NEG_INFINITY]).collect();
        let kept = (0..19).map(|i| (-f64::from(i) / 2.0).exp()).filter(|&w| w >= 0.1);
        assert!((softmax.total(&logits, 0.1) - kept.sum::<f64>()).abs() < 1e-5);
        assert_eq!(Softmax { top: f32::INFINITY, ..softmax }.total(&[f32::INFINITY, 1.0, f32::INFINITY], 0.1), 2.0);
    }
}
