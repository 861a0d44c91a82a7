//! Sequences being processed: caches, working memory, and the calls that advance them.

use std::ops::Range;
use std::sync::Arc;

use super::cancel::Cancel;
use super::forward::{Pass, State, forward};
use super::sequence::{Sequence, SequenceStats};
use super::step::{Logits, Segment};
use crate::backend::{
    Backend, Component, Cpu, KvOptions, KvSparsity, Meter, Observer, Row, Setup, Stats, Step, Timing,
};
use crate::error::{Error, Result};
use crate::model::Model;
use crate::select::Selector;

/// Tokens of one prompt that go through the layers together. Large enough that every weight is reused many times,
/// small enough that the working memory stays modest.
pub const PREFILL_ROWS: usize = 512;

/// Rows whose logits are computed together where all are wanted.
pub const LOGIT_ROWS: usize = 32;

/// Size of a [`Session`].
#[derive(Debug, Clone, Copy)]
pub struct SessionOptions {
    /// Sequences there are from the beginning.
    pub sequences: usize,
    /// Tokens each of them has room for, prompt included.
    pub capacity: usize,
    /// How keys and values are kept.
    pub kv: KvOptions,
}

/// A model at work on any number of sequences.
pub struct Session<B: Backend = Cpu> {
    model: Arc<Model>,
    backend: Arc<B>,
    weights: B::Weights,
    selector: Selector,
    kv: KvOptions,
    /// By number; none where a sequence was removed.
    sequences: Vec<Option<Sequence>>,
    kvs: Vec<B::Kv>,
    workspace: B::Workspace,
    selection: Option<B::Selection>,
    meter: Meter,
    cancel: Cancel,
    /// Tokens that ran so far.
    before: usize,
    rows: Vec<Row>,
    /// Numbers of the rows whose logits are wanted.
    wanted: Vec<usize>,
    logits: Vec<f32>,
}

impl<B: Backend> Session<B> {
    /// Empty sequences of `model`, run with `selector` (from [`Load`](crate::Load)).
    ///
    /// # Errors
    /// If the capacity is above the model's context length or 0, a fraction of [`KvSparsity`] is not in 0..=1, or a weight cache
    /// cannot be set up.
    ///
    /// # Panics
    /// If `selector` is sparse and the weights are not neuron-major: [`Load`](crate::Load) sees to it.
    pub fn new(model: Arc<Model>, backend: Arc<B>, selector: Selector, options: SessionOptions) -> Result<Self> {
        let SessionOptions { sequences, capacity, kv } = options;
        let spec = &model.spec;
        let fits = |s: &KvSparsity| [s.keys, s.values].iter().all(|f| (0.0..=1.0).contains(f));
        if let Some(sparsity) = kv.sparsity.filter(|s| !fits(s)) {
            return Err(Error::option("kv-sparsity", format!("fractions must be from 0 to 1, found {sparsity}")));
        }
        assert!(
            model.weights.is_neuron_major() || !selector.selects_neurons(),
            "sparse selection needs neuron-major weights: use Load"
        );
        let scorer = selector.neurons().map(|neurons| &neurons.scorer);
        let setup = Setup { spec, placement: model.placement, scorer, rows: sequences.max(1) };
        let weights = backend.place(spec, &model.weights)?;
        let rows = sequences.max(PREFILL_ROWS.min(capacity));
        let mut session = Session {
            workspace: backend.workspace(&setup, &weights)?,
            selection: scorer.map(|scorer| backend.selection(&setup, scorer)),
            meter: Meter::new(spec.num_layers, rows),
            logits: Vec::with_capacity(sequences * spec.vocab_size),
            rows: Vec::with_capacity(rows),
            wanted: Vec::with_capacity(rows),
            sequences: Vec::new(),
            kvs: Vec::new(),
            cancel: Cancel::default(),
            before: 0,
            kv,
            weights,
            selector,
            backend,
            model,
        };
        (0..sequences).try_for_each(|_| session.add_sequence(capacity).map(|_| ()))?;
        Ok(session)
    }

    /// The model.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// What it runs on.
    pub fn backend(&self) -> &Arc<B> {
        &self.backend
    }

    /// How keys and values are kept.
    pub fn kv(&self) -> &KvOptions {
        &self.kv
    }

    /// Adds an empty sequence with room for `capacity` tokens, and returns its number: the lowest that is free.
    ///
    /// # Errors
    /// If the capacity is above the model's context length, or 0.
    pub fn add_sequence(&mut self, capacity: usize) -> Result<usize> {
        self.check_capacity(capacity)?;
        let kv_dtype = self.kv.dtype.unwrap_or(self.model.default_kv_dtype());
        let kv = self.backend.kv(&self.model.spec, kv_dtype, &self.kv, capacity);
        let sequence = Sequence { tokens: Vec::with_capacity(capacity), capacity, ..Sequence::default() };
        let number = self.sequences.iter().position(Option::is_none).unwrap_or(self.sequences.len());
        if number == self.sequences.len() {
            self.sequences.push(Some(sequence));
            self.kvs.push(kv);
        } else {
            (self.sequences[number], self.kvs[number]) = (Some(sequence), kv);
        }
        Ok(number)
    }

    /// Gives up a sequence, its memory and its number; says what it took.
    ///
    /// # Errors
    /// If there is no such sequence.
    pub fn remove_sequence(&mut self, sequence: usize) -> Result<SequenceStats> {
        let stats = self.sequence(sequence)?.stats;
        self.sequences[sequence] = None;
        // A cache without room takes no memory.
        self.kvs[sequence] = self.backend.kv(&self.model.spec, self.model.default_kv_dtype(), &KvOptions::default(), 0);
        Ok(stats)
    }

    /// Gives a sequence room for `capacity` tokens, if it has less.
    ///
    /// # Errors
    /// If there is no such sequence, or the capacity is above the model's context length.
    pub fn grow(&mut self, sequence: usize, capacity: usize) -> Result<()> {
        self.check_capacity(capacity)?;
        let state = self.sequence_mut(sequence)?;
        if capacity > state.capacity {
            state.capacity = capacity;
            self.backend.grow_kv(&mut self.kvs[sequence], capacity);
        }
        Ok(())
    }

    fn check_capacity(&self, capacity: usize) -> Result<()> {
        let context = self.model.spec.context_length();
        match capacity {
            0 => Err(Error::option("session", "needs at least one token of room for each sequence")),
            _ if capacity > context => Err(Error::ContextLength { needed: capacity, context }),
            _ => Ok(()),
        }
    }

    /// Sequences there are.
    pub fn sequences(&self) -> usize {
        self.sequences.iter().flatten().count()
    }

    /// Tokens cached of `sequence`; 0 if there is none.
    pub fn len(&self, sequence: usize) -> usize {
        self.tokens(sequence).len()
    }

    /// The tokens cached of `sequence`; none if there is none.
    pub fn tokens(&self, sequence: usize) -> &[u32] {
        self.sequences.get(sequence).and_then(Option::as_ref).map_or(&[], |state| &state.tokens)
    }

    /// Whether no sequence has a token.
    pub fn is_empty(&self) -> bool {
        self.sequences.iter().flatten().all(|state| state.tokens.is_empty())
    }

    /// Tokens that `sequence` has room for; 0 if there is none.
    pub fn capacity(&self, sequence: usize) -> usize {
        self.sequences.get(sequence).and_then(Option::as_ref).map_or(0, |state| state.capacity)
    }

    /// Bytes of the caches of all sequences: what is allocated for their capacity, resident once it is written.
    pub fn kv_bytes(&self) -> usize {
        self.kvs.iter().map(|kv| self.backend.kv_bytes(kv)).sum()
    }

    /// Forgets all but the first `len` tokens of `sequence`, as if the others had never been, unless the cache is sparse and `len`
    /// lies before the last step: a sparse cache keeps pruned what it has pruned.
    ///
    /// # Errors
    /// If it has fewer, or there is no such sequence.
    pub fn truncate(&mut self, sequence: usize, len: usize) -> Result<()> {
        let state = self.sequence_mut(sequence)?;
        let has = state.tokens.len();
        if len > has {
            let message = format!("sequence {sequence} has {has} tokens: it cannot be cut to {len}");
            return Err(Error::option("sequence", message));
        }
        state.tokens.truncate(len);
        state.expected = 0;
        self.backend.truncate_kv(&mut self.kvs[sequence], len);
        Ok(())
    }

    /// Gives `to` the first `len` tokens of `from`, in place of its own: sequences that begin alike compute a prompt once. Only what
    /// is used is copied.
    ///
    /// # Errors
    /// If `from` has fewer, `to` has less room, or there is no such sequence.
    pub fn copy_prefix(&mut self, from: usize, to: usize, len: usize) -> Result<()> {
        let (source, target) = (self.sequence(from)?, self.sequence(to)?);
        let (has, room, rotated_for) = (source.tokens.len(), target.capacity, source.rotated_for);
        if len > has || len > room {
            let message =
                format!("{len} tokens of sequence {from}, which has {has}, do not fit {to}, which has room for {room}");
            return Err(Error::option("sequence", message));
        }
        if from == to {
            return self.truncate(to, len);
        }
        let [source, target] = self.sequences.get_disjoint_mut([from, to]).expect("two sequences");
        if let (Some(source), Some(target)) = (source, target) {
            target.tokens.clear();
            target.tokens.extend_from_slice(&source.tokens[..len]);
            (target.rotated_for, target.expected) = (rotated_for, 0);
        }
        let [source, target] = self.kvs.get_disjoint_mut([from, to]).expect("two sequences");
        self.backend.copy_kv(source, target, len);
        Ok(())
    }

    /// Makes sequence `i` what `order[i]` was, for the first `order.len()` sequences: what a beam search does with its beams. Caches
    /// that are wanted once change places, others are copied as far as they are used.
    ///
    /// # Errors
    /// If there is no such sequence, or one has less room than another that it takes the place of.
    pub fn reorder(&mut self, order: &[usize]) -> Result<()> {
        for (to, &from) in order.iter().enumerate() {
            let (len, room) = (self.sequence(from)?.tokens.len(), self.sequence(to)?.capacity);
            if from >= order.len() || len > room {
                let message = format!("cannot take {from} for sequence {to} of {}", order.len());
                return Err(Error::option("order", message));
            }
        }
        let mut order = order.to_vec();
        let mut done = vec![false; order.len()];
        // Those that nobody wants as they are receive copies, until every other is wanted just once.
        while let Some(to) = (0..order.len()).find(|&i| !done[i] && (0..order.len()).all(|j| done[j] || order[j] != i))
        {
            self.copy_prefix(order[to], to, self.len(order[to]))?;
            done[to] = true;
        }
        // What is left goes round in circles.
        for start in 0..order.len() {
            let mut at = start;
            while !done[at] {
                let from = order[at];
                done[at] = true;
                if from == start {
                    break;
                }
                self.sequences.swap(at, from);
                self.kvs.swap(at, from);
                order[at] = at;
                at = from;
            }
        }
        Ok(())
    }

    /// Counts of the steps since the last [`reset_stats`](Self::reset_stats).
    pub fn stats(&self) -> &Stats {
        &self.meter.stats
    }

    /// Starts counting anew.
    pub fn reset_stats(&mut self) {
        self.meter.stats.reset();
    }

    /// What a sequence took since it was added.
    ///
    /// # Errors
    /// If there is no such sequence.
    pub fn sequence_stats(&self, sequence: usize) -> Result<&SequenceStats> {
        Ok(&self.sequence(sequence)?.stats)
    }

    /// Starts timing every component of every step from here on.
    pub fn start_profile(&mut self) {
        self.meter.clock.start();
    }

    /// Seconds per call of [`prefill`](Self::prefill) or [`decode`](Self::decode) by component, since
    /// [`start_profile`](Self::start_profile).
    pub fn profile(&self) -> Vec<(Component, Timing)> {
        self.meter.clock.report()
    }

    /// What stops a step between two layers.
    pub fn cancel(&self) -> &Cancel {
        &self.cancel
    }

    /// Stops with `cancel` from here on.
    pub fn set_cancel(&mut self, cancel: Cancel) {
        self.cancel = cancel;
    }

    /// Runs the tokens of several sequences through the layers together, and returns the logits that are wanted, `[rows, vocab]`, in
    /// the order of the segments.
    ///
    /// A sparse cache shows tokens of one step each other dense, so what a prompt gives depends on how it is cut into segments.
    ///
    /// # Errors
    /// If a sequence is named twice or is not there, a segment has no tokens, an id is outside the vocabulary, tokens do not fit,
    /// a sequence must be [restarted](Self::restart), weights are read while the model runs and cannot be, or the work is cancelled.
    /// Then nothing was appended, and the session can go on.
    pub fn step(&mut self, segments: &[Segment]) -> Result<&[f32]> {
        for (i, segment) in segments.iter().enumerate() {
            self.check(segment.sequence, segment.tokens)?;
            if segments[..i].iter().any(|s| s.sequence == segment.sequence) {
                return Err(named_twice(segment.sequence));
            }
            let len = self.length_after(segment.sequence, segment.tokens.len());
            if self.is_outdated(segment.sequence, len) {
                let message = format!(
                    "the keys of sequence {} are rotated for fewer tokens than {len}: restart it",
                    segment.sequence
                );
                return Err(Error::option("sequence", message));
            }
        }
        self.rows.clear();
        self.wanted.clear();
        for segment in segments {
            let first = self.rows.len();
            self.push(segment.sequence, segment.tokens);
            let rows = first..self.rows.len();
            match segment.logits {
                Logits::None => {}
                Logits::Last => self.wanted.push(rows.end - 1),
                Logits::All => self.wanted.extend(rows),
            }
        }
        if !segments.is_empty() {
            self.run(&mut ())?;
        }
        self.compute_logits();
        self.meter.clock.end_step();
        Ok(&self.logits)
    }

    /// Says that a sequence will come to `len` tokens before logits are wanted: a prompt that is computed piece by piece is rotated
    /// for its whole length.
    ///
    /// # Errors
    /// If there is no such sequence.
    pub fn expect(&mut self, sequence: usize, len: usize) -> Result<()> {
        self.sequence_mut(sequence)?.expected = len;
        Ok(())
    }

    /// Whether the cached tokens of `sequence` are of no use once it has `len`: LongRoPE rotates all keys in another way when a
    /// sequence crosses its original length, as transformers does.
    pub fn is_outdated(&self, sequence: usize, len: usize) -> bool {
        let Ok(state) = self.sequence(sequence) else { return false };
        !state.tokens.is_empty() && self.model.spec.rotates_anew(state.rotated_for, len)
    }

    /// Forgets the cached tokens of `sequence`, which will come to `len`, and returns them: they are a prompt to be computed again.
    ///
    /// # Errors
    /// If there is no such sequence.
    pub fn restart(&mut self, sequence: usize, len: usize) -> Result<Vec<u32>> {
        let tokens = self.sequence(sequence)?.tokens.clone();
        self.truncate(sequence, 0)?;
        self.expect(sequence, len)?;
        Ok(tokens)
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
        self.append(sequence, tokens, |_, _| Ok(()), &mut ())?;
        self.wanted.clear();
        self.wanted.push(self.rows.len() - 1);
        self.compute_logits();
        self.meter.clock.end_step();
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
        let each_row = |session: &mut Self, done: usize| {
            let rows = session.rows.len();
            for start in (0..rows).step_by(LOGIT_ROWS) {
                session.want(start..rows.min(start + LOGIT_ROWS));
                session.compute_logits();
                for (i, logits) in session.logits.chunks_exact(vocab).enumerate() {
                    each(done + start + i, logits)?;
                }
            }
            Ok(())
        };
        self.append(sequence, tokens, each_row, observer)
    }

    /// Appends `tokens` to `sequence` without computing logits, `observer` seeing every MLP's input.
    ///
    /// # Errors
    /// As [`prefill`](Self::prefill).
    pub fn observe(&mut self, sequence: usize, tokens: &[u32], observer: &mut dyn Observer) -> Result<()> {
        self.append(sequence, tokens, |_, _| Ok(()), observer)
    }

    /// Appends one token to each of the named sequences and returns their logits, `[tokens.len(), vocab]`.
    ///
    /// # Errors
    /// As [`prefill`](Self::prefill), or if a sequence is named twice.
    pub fn decode(&mut self, tokens: &[(usize, u32)]) -> Result<&[f32]> {
        for (i, &(sequence, token)) in tokens.iter().enumerate() {
            self.check(sequence, &[token])?;
            if tokens[..i].iter().any(|t| t.0 == sequence) {
                return Err(named_twice(sequence));
            }
        }
        for &(sequence, _) in tokens {
            self.renew(sequence, self.length_after(sequence, 1))?;
        }
        self.rows.clear();
        tokens.iter().for_each(|&(sequence, token)| self.push(sequence, &[token]));
        if tokens.is_empty() {
            return Ok(&[]);
        }
        self.run(&mut ())?;
        self.want(0..tokens.len());
        self.compute_logits();
        self.meter.clock.end_step();
        Ok(&self.logits)
    }

    /// Appends a prompt in steps, after computing what is cached anew where it must be.
    fn append(
        &mut self,
        sequence: usize,
        tokens: &[u32],
        mut after_step: impl FnMut(&mut Self, usize) -> Result<()>,
        observer: &mut dyn Observer,
    ) -> Result<()> {
        if tokens.is_empty() {
            return Err(Error::option("prompt", "has no tokens"));
        }
        self.check(sequence, tokens)?;
        let len = self.len(sequence) + tokens.len();
        self.renew(sequence, len)?;
        self.expect(sequence, len)?;
        for (i, piece) in tokens.chunks(PREFILL_ROWS).enumerate() {
            self.rows.clear();
            self.push(sequence, piece);
            self.run(observer)?;
            after_step(self, i * PREFILL_ROWS)?;
        }
        Ok(())
    }

    /// Computes the cached tokens of `sequence` again where they are [outdated](Self::is_outdated) once it has `len`: a prompt of
    /// its own.
    fn renew(&mut self, sequence: usize, len: usize) -> Result<()> {
        if !self.is_outdated(sequence, len) {
            return Ok(());
        }
        let tokens = self.restart(sequence, len)?;
        for piece in tokens.chunks(PREFILL_ROWS) {
            self.rows.clear();
            self.push(sequence, piece);
            self.run(&mut ())?;
        }
        Ok(())
    }

    /// Tokens that `sequence` has, or is known to come to, after so many more.
    fn length_after(&self, sequence: usize, more: usize) -> usize {
        let expected = self.sequence(sequence).map_or(0, |state| state.expected);
        expected.max(self.len(sequence) + more)
    }

    /// Adds the rows of tokens that are appended to a sequence.
    fn push(&mut self, sequence: usize, tokens: &[u32]) {
        let (len, sequence_len) = (self.len(sequence), self.length_after(sequence, tokens.len()));
        let row = |(i, &token)| Row { token, sequence, position: len + i, sequence_len };
        self.rows.extend(tokens.iter().enumerate().map(row));
    }

    /// Runs the rows.
    fn run(&mut self, observer: &mut dyn Observer) -> Result<()> {
        let Session { model, backend, weights, selector, sequences, kvs, workspace, selection, meter, .. } = self;
        backend.check()?;
        meter.begin(self.rows.len());
        let pass = Pass { backend: &**backend, spec: &model.spec, weights, selector };
        let mut state = State { kvs, workspace, selection: selection.as_mut() };
        let mut step = Step { rows: &self.rows, before: self.before, observer, meter };
        forward(&pass, &mut state, &mut step, &self.cancel)?;
        for run in self.rows.chunk_by(|a, b| a.sequence == b.sequence) {
            let state = sequences[run[0].sequence].as_mut().expect("its rows were checked");
            state.stats.steps += 1;
            state.rotated_for = run[0].sequence_len;
            state.tokens.extend(run.iter().map(|row| row.token));
        }
        for (row, &counts) in self.rows.iter().zip(self.meter.rows()) {
            let state = self.sequences[row.sequence].as_mut().expect("its rows were checked");
            state.stats.add(counts);
        }
        self.meter.stats.steps += 1;
        self.before += self.rows.len();
        Ok(())
    }

    fn want(&mut self, rows: Range<usize>) {
        self.wanted.clear();
        self.wanted.extend(rows);
    }

    fn compute_logits(&mut self) {
        let spec = &self.model.spec;
        self.logits.resize(self.wanted.len() * spec.vocab_size, 0.0);
        self.meter.clock.begin_step();
        if !self.wanted.is_empty() {
            self.backend.head(spec, &self.weights, &self.wanted, &mut self.workspace, &mut self.logits);
        }
        self.meter.lap(Component::Head);
    }

    /// Refuses `tokens` that are not valid or do not fit.
    fn check(&self, sequence: usize, tokens: &[u32]) -> Result<()> {
        let state = self.sequence(sequence)?;
        if tokens.is_empty() {
            return Err(Error::option("tokens", format!("sequence {sequence} is to be advanced by none")));
        }
        let vocab = self.model.spec.vocab_size;
        if let Some(token) = tokens.iter().find(|&&t| t as usize >= vocab) {
            let message =
                format!("id {token} is outside the model's vocabulary of {vocab}: is the tokenizer another model's?");
            return Err(Error::option("tokens", message));
        }
        let needed = state.tokens.len() + tokens.len();
        if needed > state.capacity {
            return Err(Error::ContextLength { needed, context: state.capacity });
        }
        Ok(())
    }

    fn sequence(&self, number: usize) -> Result<&Sequence> {
        self.sequences.get(number).and_then(Option::as_ref).ok_or_else(|| no_sequence(number))
    }

    fn sequence_mut(&mut self, number: usize) -> Result<&mut Sequence> {
        self.sequences.get_mut(number).and_then(Option::as_mut).ok_or_else(|| no_sequence(number))
    }
}

fn no_sequence(number: usize) -> Error {
    Error::option("sequence", format!("there is no sequence {number}"))
}

fn named_twice(number: usize) -> Error {
    Error::option("sequence", format!("sequence {number} is named twice in one step"))
}

impl<B: Backend> std::fmt::Debug for Session<B> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Session({} sequences of {})", self.sequences(), self.model.spec.architecture)
    }
}
