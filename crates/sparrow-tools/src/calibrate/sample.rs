//! Quantiles of more values than can be kept.

/// A sample, in order and evenly spread, of the finite values given.
pub(crate) struct Sample {
    values: Vec<f32>,
    limit: usize,
    /// Every how many values one is kept.
    stride: usize,
    seen: usize,
}

impl Sample {
    /// At most `limit` values.
    pub fn new(limit: usize) -> Self {
        Sample { values: Vec::new(), limit, stride: 1, seen: 0 }
    }

    pub fn extend(&mut self, values: impl IntoIterator<Item = f32>) {
        for value in values.into_iter().filter(|v| v.is_finite()) {
            if self.seen.is_multiple_of(self.stride) {
                if self.values.len() == self.limit {
                    let mut keep = false;
                    self.values.retain(|_| {
                        keep = !keep;
                        keep
                    });
                    self.stride *= 2;
                }
                self.values.push(value);
            }
            self.seen += 1;
        }
    }

    pub fn sorted(mut self) -> Vec<f32> {
        self.values.sort_unstable_by(f32::total_cmp);
        self.values
    }
}

/// The value that a fraction `q` of ascending values is below; 0 without values.
pub(crate) fn quantile(sorted: &[f32], q: f64) -> f32 {
    match sorted.len() {
        0 => 0.0,
        n => sorted[((n as f64 * q) as usize).min(n - 1)],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_has_the_quantiles_of_what_it_saw() {
        let mut sample = Sample::new(1000);
        // 7 is coprime to the number of values, so they come in another order than their size.
        sample.extend((0..100_003u64).map(|i| (i * 7919 % 100_003) as f32).chain([f32::NAN, f32::INFINITY]));
        let sorted = sample.sorted();
        assert!(sorted.len() <= 1000 && sorted.len() >= 500, "{}", sorted.len());
        for q in [0.01, 0.5, 0.9] {
            assert!((f64::from(quantile(&sorted, q)) / 100_003.0 - q).abs() < 0.02, "{q}");
        }
        assert_eq!(quantile(&[], 0.5), 0.0);
        assert_eq!(quantile(&[1.0, 2.0], 1.0), 2.0);
    }
}
