//! Chooses tokens.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

use super::logprobs::{Sampled, logprobs};
use super::options::SampleOptions;
use super::penalties::Penalties;
use super::ranking::Ranking;
use super::softmax::Softmax;
use crate::error::Result;

/// Chooses the tokens of one sequence; its random numbers are a function of the seed alone, on every platform.
#[derive(Debug)]
pub struct Sampler {
    options: SampleOptions,
    vocab: usize,
    rng: ChaCha8Rng,
    penalties: Penalties,
    /// Logits after bias and penalties, where there are any.
    adjusted: Vec<f32>,
    ranking: Ranking,
}

impl Sampler {
    /// A sampler for a vocabulary of `vocab` tokens.
    ///
    /// # Errors
    /// If an option is out of range.
    pub fn new(options: SampleOptions, vocab: usize) -> Result<Self> {
        options.check(vocab)?;
        let penalties = Penalties::new(&options, vocab);
        let draws = options.temperature > 0.0;
        Ok(Sampler {
            vocab,
            rng: ChaCha8Rng::seed_from_u64(options.seed),
            // Room for the worst case, so that no token allocates; memory that is never written to costs nothing.
            adjusted: Vec::with_capacity(if draws && penalties.any() { vocab } else { 0 }),
            ranking: Ranking::with_capacity(if draws { vocab } else { 0 }),
            penalties,
            options,
        })
    }

    /// Tells the sampler that the sequence begins with `prompt` (the repetition penalty applies to it).
    pub fn accept_prompt(&mut self, prompt: &[u32]) {
        prompt.iter().filter(|&&token| (token as usize) < self.vocab).for_each(|&token| self.penalties.see(token));
    }

    /// Tells the sampler that `token` was generated (all penalties apply to it).
    pub fn accept(&mut self, token: u32) {
        if (token as usize) < self.vocab {
            self.penalties.see(token);
            self.penalties.count(token);
        }
    }

    /// The next token for `logits`, `[vocab]`. NaN logits are never chosen unless all are NaN, -∞ unless there is nothing else.
    ///
    /// Only as many tokens are sorted as the draw looks at; the result is that of sorting all, but for the rounding of the
    /// total probability (in f64), whose terms are added in the order of their ids.
    ///
    /// # Panics
    /// If `logits` is empty, or its length is not that of the vocabulary.
    pub fn sample(&mut self, logits: &[f32]) -> u32 {
        assert!(!logits.is_empty() && logits.len() == self.vocab, "{} logits, not {}", logits.len(), self.vocab);
        let SampleOptions { temperature, top_k, top_p, min_p, .. } = self.options;
        if temperature == 0.0 {
            return self.penalties.most_likely(logits);
        }
        let logits = self.penalties.apply_to(logits, &mut self.adjusted);
        let limit = if top_k == 0 { self.vocab } else { top_k.min(self.vocab) };
        self.ranking.restart(limit);
        let Some((top, most_likely)) = self.ranking.get(logits, 0) else {
            return 0;
        };
        let softmax = Softmax { top, temperature };
        // Weight and id at a rank, until `top_k` or `min_p` says stop.
        let mut kept = |rank| {
            let (logit, id) = self.ranking.get(logits, rank)?;
            let weight = softmax.weight(logit);
            (weight >= min_p).then_some((f64::from(weight), id))
        };
        let mut total = match limit < self.vocab {
            true => (0..).map_while(&mut kept).map(|(weight, _)| weight).sum(),
            false => softmax.total(logits, min_p),
        };
        if top_p < 1.0 {
            let mut nucleus = 0.0;
            let enough = f64::from(top_p) * total;
            for (weight, _) in (0..).map_while(&mut kept) {
                nucleus += weight;
                if nucleus >= enough {
                    break;
                }
            }
            total = nucleus;
        }
        // At most 1 - 2⁻²⁴ of the total, which is further from its end than rounding: the draw ends at a weight above 0.
        let uniform = (self.rng.next_u32() >> 8) as f32 / (1 << 24) as f32;
        let mut left = f64::from(uniform) * total;
        let mut chosen = most_likely;
        for (weight, id) in (0..).map_while(&mut kept) {
            chosen = id;
            left -= weight;
            if left < 0.0 {
                break;
            }
        }
        chosen
    }

    /// The next token, as [`sample`](Self::sample) chooses it, with its log-probability and `top_logprobs` alternatives:
    /// those of the model, see [`logprobs`].
    ///
    /// # Panics
    /// As [`sample`](Self::sample).
    pub fn sample_with_logprobs(&mut self, logits: &[f32]) -> Sampled {
        let token = self.sample(logits);
        logprobs(logits, token, self.options.top_logprobs)
    }
}
