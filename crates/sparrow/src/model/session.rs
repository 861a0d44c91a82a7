//! Sequences being processed: caches, working memory, and the calls that advance them.

use std::sync::Arc;

use super::forward::{forward, logits};
use super::kv::KvCache;
use super::neuron_cache::NeuronCache;
use super::{Component, KvOptions, Model, Row, Scratch, Stats, Timing};
use crate::backend::Cpu;
use crate::checkpoint::Placement;
use crate::error::{Error, Result};
use crate::sparsity::{Observer, Selector};

/// Tokens of one prompt that go through the layers together. Large enough that every weight is reused many times,
/// small enough that the working memory stays modest.
pub(crate) const PREFILL_ROWS: usize = 512;

/// Rows whose logits are computed together where all are wanted.
pub(crate) const LOGIT_ROWS: usize = 32;

/// Size of a [`Session`].
#[derive(Debug, Clone, Copy)]
pub struct SessionOptions {
    /// Sequences processed side by side.
    pub sequences: usize,
    /// Tokens each sequence has room for, prompt included.
    pub capacity: usize,
    /// How keys and values are kept.
    pub kv: KvOptions,
}

/// A model at work on one or more sequences.
#[derive(Debug)]
pub struct Session {
    model: Arc<Model>,
    cpu: Arc<Cpu>,
    selector: Selector,
    kv: KvOptions,
    caches: Vec<KvCache>,
    rows: Vec<Row>,
    scratch: Scratch,
    logits: Vec<f32>,
}

impl Session {
    /// Empty sequences of `model`, run with `selector` (from [`Model::prepare`]).
    ///
    /// # Errors
    /// If the capacity is above the model's context length, a size is 0, a fraction of [`KvSparsity`](super::KvSparsity) is not in
    /// 0..=1, or a weight cache cannot be set up.
    ///
    /// # Panics
    /// If `selector` is sparse and the weights are not neuron-major: [`Model::prepare`] sees to it.
    pub fn new(model: Arc<Model>, cpu: Arc<Cpu>, selector: Selector, options: SessionOptions) -> Result<Self> {
        let SessionOptions { sequences, capacity, kv } = options;
        let spec = &model.spec;
        if sequences == 0 || capacity == 0 {
            return Err(Error::option("session", "needs at least one sequence and one token of room"));
        }
        if capacity > spec.context_length() {
            return Err(Error::ContextLength { needed: capacity, context: spec.context_length() });
        }
        if let Some(sparsity) = kv.sparsity.filter(|s| ![s.keys, s.values].iter().all(|f| (0.0..=1.0).contains(f))) {
            return Err(Error::option("kv-sparsity", format!("fractions must be from 0 to 1, found {sparsity}")));
        }
        assert!(
            model.weights.is_neuron_major() || !selector.selects_neurons(),
            "sparse selection needs neuron-major weights: use Model::prepare"
        );
        let kv_dtype = kv.dtype.unwrap_or(model.default_kv_dtype());
        let caches = (0..sequences).map(|_| KvCache::new(spec, kv_dtype, &kv, capacity)).collect();
        let mut scratch = Scratch::new(spec);
        scratch.resize(sequences);
        scratch.reserve(sequences, spec);
        if let Placement::Cache(cache) = model.placement {
            scratch.cache = Some(NeuronCache::new(&model, &selector, cache)?);
        }
        let logits = Vec::with_capacity(sequences * spec.vocab_size);
        let rows = Vec::with_capacity(sequences.max(PREFILL_ROWS.min(capacity)));
        Ok(Session { kv, caches, rows, scratch, logits, selector, cpu, model })
    }

    /// The model.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// Tokens cached of `sequence`.
    pub fn len(&self, sequence: usize) -> usize {
        self.caches[sequence].len()
    }

    /// Whether no sequence has a token.
    pub fn is_empty(&self) -> bool {
        self.caches.iter().all(KvCache::is_empty)
    }

    /// Tokens each sequence has room for.
    pub fn capacity(&self) -> usize {
        self.caches[0].capacity()
    }

    /// How keys and values are kept.
    pub fn kv(&self) -> &KvOptions {
        &self.kv
    }

    /// Bytes of the caches of all sequences: what is allocated for their capacity, resident once it is written.
    pub fn kv_bytes(&self) -> usize {
        self.caches.iter().map(KvCache::bytes).sum()
    }

    /// Forgets all but the first `len` tokens of `sequence`, as if the others had never been, unless the cache is sparse and `len`
    /// lies before the last step: a sparse cache keeps packed what it has packed.
    ///
    /// # Panics
    /// If it has fewer.
    pub fn truncate(&mut self, sequence: usize, len: usize) {
        self.caches[sequence].truncate(&self.cpu.compute, len);
    }

    /// Gives `to` the tokens of `from`, in place of its own: sequences that begin alike compute a prompt once.
    pub fn copy_sequence(&mut self, from: usize, to: usize) {
        if from != to {
            self.caches[to] = self.caches[from].clone();
        }
    }

    /// Counts of the steps since the last [`reset_stats`](Self::reset_stats).
    pub fn stats(&self) -> &Stats {
        &self.scratch.stats
    }

    /// Starts counting anew.
    pub fn reset_stats(&mut self) {
        self.scratch.stats.reset();
    }

    /// Starts timing every component of every step from here on.
    pub fn start_profile(&mut self) {
        self.scratch.clock.start();
    }

    /// Seconds per call of [`prefill`](Self::prefill) or [`decode`](Self::decode) by component, since
    /// [`start_profile`](Self::start_profile).
    pub fn profile(&self) -> Vec<(Component, Timing)> {
        self.scratch.clock.report()
    }

    /// Appends `tokens` to `sequence` and returns the logits after the last one, `[vocab]`.
    ///
    /// A prompt runs in steps of up to 512 tokens. Over a sparse cache these see each other dense, so the results depend on how a text
    /// is cut into calls.
    ///
    /// # Errors
    /// If `tokens` is empty, an id is outside the vocabulary, or they do not fit; or if weights are read while the model runs
    /// and cannot be. The tokens of the step that failed (the last ones, up to 512) are then not in the sequence, and the session can go on.
    pub fn prefill(&mut self, sequence: usize, tokens: &[u32]) -> Result<&[f32]> {
        self.run_chunks(sequence, tokens, |_, _| Ok(()), &mut ())?;
        let last = self.rows.len() - 1;
        self.compute_logits(last..last + 1);
        self.scratch.clock.end_step();
        Ok(&self.logits)
    }

    /// Appends `tokens` to `sequence` and hands the logits after each to `each(index, logits)`, in order.
    ///
    /// # Errors
    /// As [`prefill`](Self::prefill), and whatever `each` returns.
    pub fn prefill_each(
        &mut self,
        sequence: usize,
        tokens: &[u32],
        observer: &mut dyn Observer,
        mut each: impl FnMut(usize, &[f32]) -> Result<()>,
    ) -> Result<()> {
        let vocab = self.model.spec.vocab_size;
        let each_row = |session: &mut Session, done: usize| {
            let rows = session.rows.len();
            for start in (0..rows).step_by(LOGIT_ROWS) {
                session.compute_logits(start..rows.min(start + LOGIT_ROWS));
                for (i, logits) in session.logits.chunks_exact(vocab).enumerate() {
                    each(done + start + i, logits)?;
                }
            }
            Ok(())
        };
        self.run_chunks(sequence, tokens, each_row, observer)
    }

    /// Appends `tokens` to `sequence` without computing logits, `observer` seeing every MLP's input.
    ///
    /// # Errors
    /// As [`prefill`](Self::prefill).
    pub fn observe(&mut self, sequence: usize, tokens: &[u32], observer: &mut dyn Observer) -> Result<()> {
        self.run_chunks(sequence, tokens, |_, _| Ok(()), observer)
    }

    /// Appends one token to each of the named sequences and returns their logits, `[tokens.len(), vocab]`.
    ///
    /// # Errors
    /// As [`prefill`](Self::prefill).
    ///
    /// # Panics
    /// If a sequence is named twice.
    pub fn decode(&mut self, tokens: &[(usize, u32)]) -> Result<&[f32]> {
        for (i, &(sequence, token)) in tokens.iter().enumerate() {
            assert!(tokens[..i].iter().all(|t| t.0 != sequence), "decode: sequence {sequence} is named twice");
            self.check(sequence, &[token])?;
        }
        for &(sequence, _) in tokens {
            self.rotate_anew(sequence, self.len(sequence) + 1)?;
        }
        self.rows.clear();
        for &(sequence, token) in tokens {
            let position = self.len(sequence);
            self.rows.push(Row { token, sequence, position, sequence_len: position + 1 });
        }
        if tokens.is_empty() {
            return Ok(&[]);
        }
        self.step(&mut ())?;
        self.compute_logits(0..tokens.len());
        self.scratch.clock.end_step();
        Ok(&self.logits)
    }

    fn run_chunks(
        &mut self,
        sequence: usize,
        tokens: &[u32],
        after_chunk: impl FnMut(&mut Session, usize) -> Result<()>,
        observer: &mut dyn Observer,
    ) -> Result<()> {
        if tokens.is_empty() {
            return Err(Error::option("prompt", "has no tokens"));
        }
        self.check(sequence, tokens)?;
        let sequence_len = self.len(sequence) + tokens.len();
        self.rotate_anew(sequence, sequence_len)?;
        self.append(sequence, tokens, sequence_len, after_chunk, observer)
    }

    /// Computes the cached tokens of `sequence` again where a sequence of `sequence_len` tokens has all its keys rotated in
    /// another way (LongRoPE, when it crosses its original length), as transformers does.
    fn rotate_anew(&mut self, sequence: usize, sequence_len: usize) -> Result<()> {
        let cache = &mut self.caches[sequence];
        if cache.is_empty() || !self.model.spec.rotates_anew(cache.rotated_for(), sequence_len) {
            return Ok(());
        }
        let tokens = cache.tokens().to_vec();
        cache.truncate(&self.cpu.compute, 0);
        self.append(sequence, &tokens, sequence_len, |_, _| Ok(()), &mut ())
    }

    /// Runs `tokens`, which fit, chunk by chunk; the sequence will have `sequence_len` when all that was asked for is done.
    fn append(
        &mut self,
        sequence: usize,
        tokens: &[u32],
        sequence_len: usize,
        mut after_chunk: impl FnMut(&mut Session, usize) -> Result<()>,
        observer: &mut dyn Observer,
    ) -> Result<()> {
        let start = self.len(sequence);
        for (c, chunk) in tokens.chunks(PREFILL_ROWS).enumerate() {
            let done = c * PREFILL_ROWS;
            let row = |(i, &token)| Row { token, sequence, position: start + done + i, sequence_len };
            self.rows.clear();
            self.rows.extend(chunk.iter().enumerate().map(row));
            self.step(observer)?;
            after_chunk(self, done)?;
        }
        Ok(())
    }

    /// Refuses `tokens` that are not valid or do not fit.
    fn check(&self, sequence: usize, tokens: &[u32]) -> Result<()> {
        let vocab = self.model.spec.vocab_size;
        if let Some(token) = tokens.iter().find(|&&t| t as usize >= vocab) {
            let message =
                format!("id {token} is outside the model's vocabulary of {vocab}: is the tokenizer another model's?");
            return Err(Error::option("tokens", message));
        }
        let cache = &self.caches[sequence];
        let needed = cache.len() + tokens.len();
        if needed > cache.capacity() {
            return Err(Error::ContextLength { needed, context: cache.capacity() });
        }
        Ok(())
    }

    fn step(&mut self, observer: &mut dyn Observer) -> Result<()> {
        let Session { model, cpu, selector, caches, rows, scratch, .. } = self;
        scratch.clock.begin_step();
        forward(model, cpu, selector, caches, rows, scratch, observer)?;
        scratch.stats.steps += 1;
        selector.advance(rows.len());
        Ok(())
    }

    fn compute_logits(&mut self, rows: std::ops::Range<usize>) {
        self.logits.resize(rows.len() * self.model.spec.vocab_size, 0.0);
        logits(&self.model, &self.cpu, &mut self.scratch, rows, &mut self.logits);
    }
}
