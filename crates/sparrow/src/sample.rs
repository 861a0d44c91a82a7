//! From logits to the next token.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use crate::error::{Error, Result};

/// How the next token is chosen. The default is greedy.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SampleOptions {
    /// Logits are divided by this; 0 takes the most likely token and ignores the rest.
    pub temperature: f32,
    /// Keep the `k` most likely tokens; 0 keeps all.
    pub top_k: usize,
    /// Keep the smallest set of most likely tokens whose probability reaches this (nucleus, arXiv 1904.09751); 1 keeps all.
    pub top_p: f32,
    /// Keep tokens at least this fraction as likely as the most likely one (arXiv 2407.01082); 0 keeps all.
    pub min_p: f32,
    /// Logits of tokens already in the sequence are divided (if positive) or multiplied by this (arXiv 1909.05858); 1 is off.
    pub repetition_penalty: f32,
    /// Same seed, same text.
    pub seed: u64,
}

impl Default for SampleOptions {
    fn default() -> Self {
        SampleOptions { temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0, repetition_penalty: 1.0, seed: 0 }
    }
}

/// Chooses tokens; its random numbers are a function of the seed alone, on every platform.
#[derive(Debug)]
pub struct Sampler {
    options: SampleOptions,
    rng: ChaCha8Rng,
    /// Token ids with their logits, then probabilities, most likely first.
    candidates: Vec<(f32, u32)>,
    /// Tokens of the sequence, one bit each.
    seen: Vec<u64>,
}

impl Sampler {
    /// A sampler for a vocabulary of `vocab` tokens.
    ///
    /// # Errors
    /// If an option is out of range.
    pub fn new(options: SampleOptions, vocab: usize) -> Result<Self> {
        let check = |option, ok: bool, range: &str, value: f32| match ok {
            true => Ok(()),
            false => Err(Error::option(option, format!("must be {range}, found {value}"))),
        };
        let SampleOptions { temperature: t, top_p, min_p, repetition_penalty: r, .. } = options;
        check("temperature", t >= 0.0 && t.is_finite(), "0 or above", t)?;
        check("top_p", top_p > 0.0 && top_p <= 1.0, "above 0 and at most 1", top_p)?;
        check("min_p", (0.0..=1.0).contains(&min_p), "in 0..=1", min_p)?;
        check("repetition_penalty", r > 0.0 && r.is_finite(), "above 0", r)?;
        Ok(Sampler {
            options,
            rng: ChaCha8Rng::seed_from_u64(options.seed),
            candidates: Vec::with_capacity(vocab),
            seen: vec![0; vocab.div_ceil(64)],
        })
    }

    /// Tells the sampler that `token` is part of the sequence (the repetition penalty applies to it).
    pub fn accept(&mut self, token: u32) {
        if let Some(word) = self.seen.get_mut(token as usize / 64) {
            *word |= 1 << (token % 64);
        }
    }

    /// The next token for `logits`, `[vocab]`. NaN logits are never chosen unless all are NaN.
    ///
    /// # Panics
    /// If `logits` is empty.
    pub fn sample(&mut self, logits: &[f32]) -> u32 {
        let SampleOptions { temperature, top_k, top_p, min_p, repetition_penalty, .. } = self.options;
        let seen = |i: usize| self.seen[i / 64] >> (i % 64) & 1 == 1;
        let penalised = |(i, &l): (usize, &f32)| match (repetition_penalty != 1.0 && seen(i), l > 0.0) {
            (false, _) => (l, i as u32),
            (true, true) => (l / repetition_penalty, i as u32),
            (true, false) => (l * repetition_penalty, i as u32),
        };
        let logits = logits.iter().enumerate();
        if temperature == 0.0 {
            let better = |best: (f32, u32), c: (f32, u32)| if c.0 > best.0 || best.0.is_nan() { c } else { best };
            return logits.map(penalised).reduce(better).expect("a vocabulary is not empty").1;
        }
        let c = &mut self.candidates;
        c.clear();
        c.extend(logits.map(penalised).filter(|c| !c.0.is_nan()));
        if c.is_empty() {
            return 0;
        }
        // Ties go to the lower id, so that the order, and with it the text, is always the same.
        let order = |a: &(f32, u32), b: &(f32, u32)| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1));
        if (1..c.len()).contains(&top_k) {
            c.select_nth_unstable_by(top_k - 1, order);
            c.truncate(top_k);
        }
        c.sort_unstable_by(order);
        let top = c[0].0;
        let weight = |l: f32| if l == top { 1.0 } else { ((l - top) / temperature).exp() };
        c.iter_mut().for_each(|c| c.0 = weight(c.0));
        let at_least = c.partition_point(|c| c.0 >= min_p);
        c.truncate(at_least.max(1));
        let total: f32 = c.iter().map(|c| c.0).sum();
        let mut reached = 0.0;
        let nucleus = c.iter().position(|c| {
            reached += c.0;
            reached >= top_p * total
        });
        c.truncate(nucleus.map_or(c.len(), |n| n + 1));
        let total: f32 = c.iter().map(|c| c.0).sum();
        let uniform = (self.rng.next_u32() >> 8) as f32 / (1 << 24) as f32;
        let mut left = uniform * total;
        let chosen = c.iter().find(|c| {
            left -= c.0;
            left < 0.0
        });
        chosen.unwrap_or(&c[c.len() - 1]).1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frequencies(options: SampleOptions, logits: &[f32]) -> Vec<f32> {
        let mut sampler = Sampler::new(options, logits.len()).unwrap();
        let mut counts = vec![0.0; logits.len()];
        (0..20_000).for_each(|_| counts[sampler.sample(logits) as usize] += 1.0 / 20_000.0);
        counts
    }

    const HOT: SampleOptions =
        SampleOptions { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, repetition_penalty: 1.0, seed: 7 };

    fn logits() -> [f32; 4] {
        [0.1f32, 0.4, 0.2, 0.3].map(f32::ln)
    }

    fn near(found: &[f32], expected: [f32; 4]) {
        let close = found.iter().zip(expected).all(|(f, e)| (f - e).abs() < 0.015);
        assert!(close, "{found:?} should be near {expected:?}");
    }

    #[test]
    fn frequencies_follow_the_options() {
        near(&frequencies(HOT, &logits()), [0.1, 0.4, 0.2, 0.3]);
        near(&frequencies(SampleOptions { top_k: 2, ..HOT }, &logits()), [0.0, 4.0 / 7.0, 0.0, 3.0 / 7.0]);
        near(&frequencies(SampleOptions { top_p: 0.65, ..HOT }, &logits()), [0.0, 4.0 / 7.0, 0.0, 3.0 / 7.0]);
        near(&frequencies(SampleOptions { min_p: 0.45, ..HOT }, &logits()), [0.0, 4.0 / 9.0, 2.0 / 9.0, 3.0 / 9.0]);
        // Temperature ½ squares the probabilities.
        near(
            &frequencies(SampleOptions { temperature: 0.5, ..HOT }, &logits()),
            [1. / 30., 16. / 30., 4. / 30., 9. / 30.],
        );
    }

    #[test]
    fn seeds_and_ties_are_deterministic() {
        let draw = |seed| {
            let mut s = Sampler::new(SampleOptions { seed, ..HOT }, 64).unwrap();
            (0..32).map(|_| s.sample(&[0.5; 64])).collect::<Vec<_>>()
        };
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
        let mut greedy = Sampler::new(SampleOptions::default(), 3).unwrap();
        assert_eq!(greedy.sample(&[1.0, 2.0, 2.0]), 1);
    }

    #[test]
    fn repetition_penalty_works_on_both_signs_and_nan_is_never_chosen() {
        let options = SampleOptions { repetition_penalty: 2.0, ..SampleOptions::default() };
        let mut s = Sampler::new(options, 4).unwrap();
        assert_eq!(s.sample(&[3.0, 2.0, f32::NAN, 0.0]), 0);
        s.accept(0);
        assert_eq!(s.sample(&[3.0, 2.0, f32::NAN, 0.0]), 1);
        assert_eq!(s.sample(&[-1.0, -1.5, f32::NAN, f32::NEG_INFINITY]), 1);
        assert_eq!(Sampler::new(HOT, 2).unwrap().sample(&[f32::NAN, f32::NAN]), 0);
        assert_eq!(Sampler::new(HOT, 2).unwrap().sample(&[f32::INFINITY, 1.0]), 0);
    }

    #[test]
    fn options_out_of_range_are_refused() {
        for options in [
            SampleOptions { temperature: -1.0, ..HOT },
            SampleOptions { temperature: f32::NAN, ..HOT },
            SampleOptions { top_p: 0.0, ..HOT },
            SampleOptions { min_p: 1.5, ..HOT },
            SampleOptions { repetition_penalty: 0.0, ..HOT },
        ] {
            assert!(Sampler::new(options, 4).is_err(), "{options:?}");
        }
    }
}
