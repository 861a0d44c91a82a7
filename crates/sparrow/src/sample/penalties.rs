//! Logits that differ from the model's: biased tokens, and tokens that occurred before.

use super::options::SampleOptions;

/// Bias and penalties of one sequence, and what they depend on.
#[derive(Debug)]
pub(super) struct Penalties {
    repetition: f32,
    presence: f32,
    frequency: f32,
    /// By token id.
    bias: Vec<(u32, f32)>,
    /// Tokens of the prompt and the output.
    seen: Bits,
    /// How often each token occurs in the output; empty if nobody asks.
    counts: Vec<u32>,
    /// Tokens whose logit may differ from the model's.
    touched: Bits,
}

/// A set of token ids, one bit each.
type Bits = Vec<u64>;

fn insert(bits: &mut Bits, id: u32) {
    bits[id as usize / 64] |= 1 << (id % 64);
}

impl Penalties {
    pub fn new(options: &SampleOptions, vocab: usize) -> Penalties {
        let mut bias = options.logit_bias.clone();
        bias.sort_by_key(|b| b.0);
        bias.dedup_by(|next, kept| {
            next.0 == kept.0 && {
                kept.1 += next.1;
                true
            }
        });
        let mut touched = vec![0; vocab.div_ceil(64)];
        bias.iter().for_each(|b| insert(&mut touched, b.0));
        let SampleOptions { repetition_penalty, presence_penalty: presence, frequency_penalty: frequency, .. } =
            *options;
        let counted = presence != 0.0 || frequency != 0.0;
        Penalties {
            repetition: repetition_penalty,
            presence,
            frequency,
            bias,
            seen: touched.iter().map(|_| 0).collect(),
            counts: vec![0; if counted { vocab } else { 0 }],
            touched,
        }
    }

    /// Whether there is anything that can change a logit.
    pub fn any(&self) -> bool {
        self.repetition != 1.0 || !self.counts.is_empty() || !self.bias.is_empty()
    }

    /// `token`, which must be in the vocabulary, occurs in the prompt or the output.
    pub fn see(&mut self, token: u32) {
        if self.repetition != 1.0 {
            insert(&mut self.seen, token);
            insert(&mut self.touched, token);
        }
    }

    /// `token`, which must be in the vocabulary, was generated.
    pub fn count(&mut self, token: u32) {
        if let Some(count) = self.counts.get_mut(token as usize) {
            *count = count.saturating_add(1);
            insert(&mut self.touched, token);
        }
    }

    /// What the model's `logit` of a token becomes.
    fn apply(&self, id: usize, mut logit: f32) -> f32 {
        if let Ok(at) = self.bias.binary_search_by_key(&id, |b| b.0 as usize) {
            logit += self.bias[at].1;
        }
        if self.seen[id / 64] >> (id % 64) & 1 == 1 {
            logit = if logit > 0.0 { logit / self.repetition } else { logit * self.repetition };
        }
        match self.counts.get(id) {
            None | Some(0) => logit,
            Some(&count) => logit - (self.frequency * count as f32 + self.presence),
        }
    }

    /// All logits after bias and penalties: the model's own where there are none, else in `scratch`.
    pub fn apply_to<'a>(&self, logits: &'a [f32], scratch: &'a mut Vec<f32>) -> &'a [f32] {
        if self.touched.iter().all(|&word| word == 0) {
            return logits;
        }
        scratch.clear();
        scratch.extend_from_slice(logits);
        for (block, &word) in self.touched.iter().enumerate() {
            let mut left = word;
            while left != 0 {
                let id = block * 64 + left.trailing_zeros() as usize;
                scratch[id] = self.apply(id, logits[id]);
                left &= left - 1;
            }
        }
        scratch
    }

    /// The most likely token, the lowest id of several, in one pass; 0 if every logit is NaN.
    pub fn most_likely(&self, logits: &[f32]) -> u32 {
        let (mut best, mut chosen) = (f32::NEG_INFINITY, None);
        for (block, (logits, &touched)) in logits.chunks(64).zip(&self.touched).enumerate() {
            // A reduction that the compiler turns into vectors: nearly all blocks end here.
            let better = logits.iter().fold(false, |any, &l| any | (l > best));
            if touched == 0 && !better && chosen.is_some() {
                continue;
            }
            for (i, &l) in logits.iter().enumerate() {
                let id = block * 64 + i;
                let l = if touched >> i & 1 == 1 { self.apply(id, l) } else { l };
                if l > best || (chosen.is_none() && !l.is_nan()) {
                    (best, chosen) = (l, Some(id as u32));
                }
            }
        }
        chosen.unwrap_or(0)
    }
}
