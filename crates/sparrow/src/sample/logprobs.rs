//! Log-probabilities of the model's own distribution.

use super::ranking::Ranking;
use super::softmax::Softmax;

/// A token and what the model thought of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampled {
    /// The token's id.
    pub token: u32,
    /// Natural logarithm of its probability; -∞ if the model excluded it, NaN if its logit is.
    pub logprob: f32,
    /// The most likely tokens, most likely first; `token` is among them only if it is one of these.
    pub top: Vec<TokenLogprob>,
}

/// A token and the logarithm of its probability.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TokenLogprob {
    /// The token's id.
    pub token: u32,
    /// Natural logarithm of its probability.
    pub logprob: f32,
}

/// Log-probability of `token` and of the `top` most likely tokens under `logits`, `[vocab]`: those of the model, without bias,
/// penalties, temperature or truncation (as with OpenAI, and by default vLLM). The sum over the vocabulary is in f64, of f32 terms
/// that are right to 2 units in the last place. NaN logits count as probability 0 and are never among the top.
///
/// # Panics
/// If `token` is not in the vocabulary.
pub fn logprobs(logits: &[f32], token: u32, top: usize) -> Sampled {
    let mut ranking = Ranking::default();
    ranking.restart(top.max(1));
    // NaN throughout if all logits are NaN.
    let largest = ranking.get(logits, 0).map_or(f32::NAN, |best| best.0);
    let log_total = libm::log(Softmax { top: largest, temperature: 1.0 }.total(logits, 0.0));
    let logprob = |logit: f32| {
        let below = if logit == largest { 0.0 } else { f64::from(logit) - f64::from(largest) };
        (below - log_total) as f32
    };
    let best = (0..top).map_while(|rank| ranking.get(logits, rank));
    let top = best.map(|(logit, token)| TokenLogprob { token, logprob: logprob(logit) }).collect();
    Sampled { token, logprob: logprob(logits[token as usize]), top }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn they_are_those_of_an_f64_softmax() {
        let logits: Vec<f32> = (0..5000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 8) as f32 / 1e6).collect();
        let total: f64 = logits.iter().map(|&l| f64::from(l).exp()).sum();
        let expected = |token: u32| f64::from(logits[token as usize]) - total.ln();
        let mut sorted: Vec<u32> = (0..5000).collect();
        sorted.sort_by(|&a, &b| logits[b as usize].total_cmp(&logits[a as usize]).then(a.cmp(&b)));
        for (token, n) in [(17, 0), (4999, 1), (sorted[0], 5), (sorted[4999], 20), (3, 5000)] {
            let found = logprobs(&logits, token, n);
            assert_eq!((found.token, found.top.len()), (token, n));
            assert!(found.top.iter().map(|t| t.token).eq(sorted[..n].iter().copied()));
            let own = TokenLogprob { token, logprob: found.logprob };
            for t in found.top.iter().chain([&own]) {
                // Two units in the last place of the sum, half of one of the result.
                let near = 2.5 * f64::from(f32::EPSILON) * (1.0 + expected(t.token).abs());
                assert!((f64::from(t.logprob) - expected(t.token)).abs() <= near, "{t:?}, not {}", expected(t.token));
            }
        }
    }

    #[test]
    fn what_is_not_finite_is_counted_out() {
        let near = |found: f32, p: f64| assert!((f64::from(found) - p.ln()).abs() < 1e-6, "{found}, not ln {p}");
        let found = logprobs(&[f32::NAN, 1.0, f32::NEG_INFINITY, 1.0], 2, 4);
        assert_eq!(found.top.iter().map(|t| t.token).collect::<Vec<_>>(), [1, 3, 2]);
        found.top[..2].iter().for_each(|t| near(t.logprob, 0.5));
        assert_eq!((found.logprob, found.top[2].logprob), (f32::NEG_INFINITY, f32::NEG_INFINITY));
        near(logprobs(&[f32::INFINITY, 1.0, f32::INFINITY], 0, 0).logprob, 0.5);
        assert_eq!(logprobs(&[f32::INFINITY, 1.0], 1, 0).logprob, f32::NEG_INFINITY);
        near(logprobs(&[f32::NEG_INFINITY; 4], 3, 0).logprob, 0.25);
        let none = logprobs(&[f32::NAN; 3], 0, 2);
        assert!(none.logprob.is_nan() && none.top.is_empty());
    }
}
