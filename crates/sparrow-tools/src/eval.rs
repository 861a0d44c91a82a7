//! What sparsity costs in quality: perplexity, KL divergence and agreement against the dense model, or any other of the same
//! vocabulary, on the same text.

use std::sync::Arc;

use sparrow::internals::backend::Observer;
use sparrow::internals::record::Evaluation;
use sparrow::internals::tensor::room;
use sparrow::{DType, Error, KvOptions, Loaded, Model, Placement, Result, Selector, Session, SessionOptions};
use sparrow_kernels::SparseKv;

/// The model as it is stored, which others made of it are compared with: the one that was loaded, unless its weights were quantised.
///
/// # Errors
/// If it cannot be read again.
pub fn as_stored(loaded: &Loaded) -> Result<Arc<Model>> {
    match &loaded.model.dir {
        Some(dir) if loaded.model.weights.dtype().is_quantized() => {
            Ok(Arc::new(Model::load(dir, Placement::default())?))
        }
        _ => Ok(loaded.model.clone()),
    }
}

/// The two sessions that [`evaluate`] compares, with room for a window: `reference`, dense, and the model as it was opened, its cache
/// kept as `kv` says. A cache that nobody asked for is exact: the bf16 of generation costs 0.1 % on some models, which would hide in
/// what is compared.
///
/// # Errors
/// As [`Session::new`].
pub fn sessions(loaded: &Loaded, reference: Arc<Model>, kv: KvOptions, window: usize) -> Result<[Session; 2]> {
    let exact = KvOptions { dtype: Some(DType::F32), ..KvOptions::default() };
    let options = SessionOptions { sequences: 1, capacity: window, kv: exact };
    let kv = if kv == KvOptions::default() { exact } else { kv };
    let dense = Session::new(reference, loaded.cpu.clone(), Selector::dense(), options)?;
    Ok([dense, loaded.session(SessionOptions { kv, ..options })?])
}

/// Scores `ids` in windows of `window` tokens, each on its own, all but its first token predicted. Both sessions need
/// one sequence with room for a window; `observer` sees the sparse model's MLPs, `progress` is told how many tokens are done.
///
/// Where the sparse session's cache is sparse, it reads a block at a time, so that what is older is packed as it is when decoding: a
/// token sees up to two blocks more than the tail dense, itself included. Where it prefers neurons that are in memory, it reads a token
/// at a time.
///
/// # Errors
/// If there are fewer than two tokens, a window does not fit a session, or the models' vocabularies differ in size.
pub fn evaluate(
    dense: &mut Session,
    sparse: &mut Session,
    ids: &[u32],
    window: usize,
    observer: &mut dyn Observer,
    mut progress: impl FnMut(usize),
) -> Result<Evaluation> {
    if ids.len() < 2 {
        return Err(Error::option("text", format!("has {} tokens; at least 2 are needed to predict one", ids.len())));
    }
    if window < 2 {
        return Err(Error::option("window", format!("must be at least 2, found {window}")));
    }
    let [reference, vocab] = [&*dense, &*sparse].map(|session| session.model().spec.vocab_size);
    if reference != vocab {
        let message = format!("has a vocabulary of {reference}, the model it is compared with one of {vocab}");
        return Err(Error::option("reference", message));
    }
    let needed = (window.min(ids.len()) * vocab * size_of::<f32>()) as u64;
    room::ask(|| format!("the logits of {window} tokens"), needed, "choose a smaller --window")?;
    sparse.reset_stats();
    let mut comparison = Comparison::default();
    let mut dense_logits = Vec::new();
    // Which neurons are preferred depends on which the last token left in memory.
    let prefers = matches!(sparse.model().placement, Placement::Cache(cache) if cache.prefer > 1.0);
    let step = match sparse.kv().sparsity {
        _ if prefers => 1,
        Some(_) => SparseKv::BLOCK,
        None => window,
    };
    for (w, ids) in ids.chunks(window).enumerate().filter(|(_, ids)| ids.len() > 1) {
        dense.truncate(0, 0)?;
        sparse.truncate(0, 0)?;
        dense_logits.clear();
        dense.prefill_each(0, ids, &mut (), |_, logits| {
            dense_logits.extend_from_slice(logits);
            Ok(())
        })?;
        let mut score = |i: usize, logits: &[f32]| {
            if let Some(&next) = ids.get(i + 1) {
                comparison.add(&dense_logits[i * vocab..(i + 1) * vocab], logits, next);
            }
            Ok(())
        };
        for (part, ids) in ids.chunks(step).enumerate() {
            sparse.prefill_each(0, ids, observer, |i, logits| score(part * step + i, logits))?;
        }
        progress(w * window + ids.len());
    }
    Ok(comparison.finish(sparse.stats().active_fraction_per_layer()))
}

/// Two models' predictions of the same tokens.
#[derive(Default)]
pub(crate) struct Comparison {
    nll: f64,
    dense_nll: f64,
    agreed: usize,
    divergences: Vec<f64>,
    log_p: [Vec<f32>; 2],
}

impl Comparison {
    /// Counts what the logits of the dense and of the other model, `[vocab]`, say of the token `next`.
    pub fn add(&mut self, dense_logits: &[f32], logits: &[f32], next: u32) {
        for (log_p, logits) in self.log_p.iter_mut().zip([dense_logits, logits]) {
            log_p.clear();
            log_p.extend_from_slice(logits);
            log_softmax(log_p);
        }
        let [reference, log_p] = &self.log_p;
        self.nll -= f64::from(log_p[next as usize]);
        self.dense_nll -= f64::from(reference[next as usize]);
        self.agreed += usize::from(argmax(log_p) == argmax(reference));
        self.divergences.push(kl_divergence(reference, log_p));
    }

    /// What was counted, beside the fraction of each layer that the other model computed.
    ///
    /// # Panics
    /// If nothing was counted.
    pub fn finish(mut self, active_fraction_per_layer: Vec<f64>) -> Evaluation {
        let tokens = self.divergences.len();
        self.divergences.sort_by(f64::total_cmp);
        let per_token = |sum: f64| sum / tokens as f64;
        Evaluation {
            tokens,
            perplexity: per_token(self.nll).exp(),
            dense_perplexity: per_token(self.dense_nll).exp(),
            kl_mean: per_token(self.divergences.iter().sum()),
            kl_p99: self.divergences[((tokens as f64 * 0.99).ceil() as usize).clamp(1, tokens) - 1],
            top1_agreement: per_token(self.agreed as f64),
            active_fraction: active_fraction_per_layer.iter().sum::<f64>() / active_fraction_per_layer.len() as f64,
            active_fraction_per_layer,
        }
    }
}

/// `x − ln Σ exp x`, in place; the sum in f64, because KL divergences of 1e-6 are measured with it.
pub(crate) fn log_softmax(x: &mut [f32]) {
    let max = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = x.iter().map(|&v| f64::from(v - max).exp()).sum();
    let offset = f64::from(max) + sum.ln();
    x.iter_mut().for_each(|v| *v = (f64::from(*v) - offset) as f32);
}

/// Σ p·(ln p − ln q), from log-probabilities.
pub(crate) fn kl_divergence(log_p: &[f32], log_q: &[f32]) -> f64 {
    let term = |(&p, &q): (&f32, &f32)| match f64::from(p).exp() {
        0.0 => 0.0,
        likely => likely * (f64::from(p) - f64::from(q)),
    };
    let sum: f64 = log_p.iter().zip(log_q).map(term).sum();
    // Rounding can leave a divergence of zero slightly negative; what is not a number stays so.
    if sum < 0.0 { 0.0 } else { sum }
}

pub(crate) fn argmax(x: &[f32]) -> usize {
    (1..x.len()).fold(0, |best, i| if x[i] > x[best] { i } else { best })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn divergence_of_known_distributions() {
        let (mut p, mut q) = ([0.0f32, 0.0], [0.0f32, 3.0f32.ln()]);
        log_softmax(&mut p);
        log_softmax(&mut q);
        // ½ ln(½ ÷ ¼) + ½ ln(½ ÷ ¾)
        assert!((kl_divergence(&p, &q) - 0.143_841).abs() < 1e-6);
        assert_eq!(kl_divergence(&p, &p), 0.0);
        assert_eq!(argmax(&[1.0, 3.0, 3.0]), 1);
        assert!(kl_divergence(&[f32::NAN, p[1]], &q).is_nan() && kl_divergence(&p, &[f32::NAN, q[1]]).is_nan());
        assert_eq!(kl_divergence(&[0.0, f32::NEG_INFINITY], &[0.0, f32::NEG_INFINITY]), 0.0);
    }
}
