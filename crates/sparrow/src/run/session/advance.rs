//! Advancing sequences: steps of any kind, and prompts and decoding as steps.

use std::ops::Range;

use super::{LOGIT_ROWS, PREFILL_ROWS, Session};
use crate::backend::{Backend, Component, Observer, Row, Step};
use crate::error::{Error, Result};
use crate::run::forward::{Pass, State, forward};
use crate::run::step::{Logits, Segment};

impl<B: Backend> Session<B> {
    /// Runs the tokens of several sequences through the layers together, and returns the logits that are wanted, `[rows, vocab]`, in
    /// the order of the segments.
    ///
    /// A sparse cache shows tokens of one step each other dense, so what a prompt gives depends on how it is cut into segments.
    ///
    /// # Errors
    /// If a sequence is named twice or is not there, a segment has no tokens, an id is outside the vocabulary, tokens do not fit,
    /// a sequence must be [restarted](Self::restart), weights are read while the model runs and cannot be, a logit is not finite, or
    /// the work is cancelled.
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
        self.compute_logits()?;
        self.meter.clock.end_step();
        Ok(&self.logits)
    }

    /// Says that a sequence will come to `len` tokens before logits are wanted: a prompt that is computed piece by piece is rotated
    /// for its whole length. Cutting the sequence, or a prompt that fails, takes it back.
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
    /// and cannot be, or a logit is not finite. The tokens of the step that failed (the last ones, up to 512) are then not in the sequence, and the session can go on.
    pub fn prefill(&mut self, sequence: usize, tokens: &[u32]) -> Result<&[f32]> {
        self.append(sequence, tokens, |_, _| Ok(()), &mut ())?;
        self.wanted.clear();
        self.wanted.push(self.rows.len() - 1);
        self.compute_logits()?;
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
                session.compute_logits()?;
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
        self.compute_logits()?;
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
        let mut pieces = tokens.chunks(PREFILL_ROWS).enumerate();
        let appended = pieces.try_for_each(|(i, piece)| {
            self.rows.clear();
            self.push(sequence, piece);
            self.run(observer)?;
            after_step(self, i * PREFILL_ROWS)
        });
        if appended.is_err() {
            // The rest of the prompt does not come any more.
            self.expect(sequence, 0)?;
        }
        appended
    }

    /// Computes the cached tokens of `sequence` again where they are [outdated](Self::is_outdated) once it has `len`: a prompt of
    /// its own.
    fn renew(&mut self, sequence: usize, len: usize) -> Result<()> {
        if !self.is_outdated(sequence, len) {
            return Ok(());
        }
        let state = self.sequence(sequence)?;
        let (capacity, rotated_for, stats) = (state.capacity, state.rotated_for, state.stats);
        let empty = self.new_kv(capacity)?;
        // What is cached now stays until all is computed anew.
        let cached = std::mem::replace(&mut self.kvs[sequence], empty);
        let tokens = self.restart(sequence, len)?;
        let computed = tokens.chunks(PREFILL_ROWS).try_for_each(|piece| {
            self.rows.clear();
            self.push(sequence, piece);
            self.run(&mut ())
        });
        if computed.is_err() {
            self.kvs[sequence] = cached;
            let state = self.sequence_mut(sequence)?;
            (state.tokens, state.rotated_for, state.expected, state.stats) = (tokens, rotated_for, 0, stats);
        }
        computed
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
        if let Err(error) = forward(&pass, &mut state, &mut step, &self.cancel) {
            // Caches hold rows of the step that belong to no sequence, which a sparse one would prune with the others.
            for run in self.rows.chunk_by(|a, b| a.sequence == b.sequence) {
                backend.truncate_kv(&mut kvs[run[0].sequence], run[0].position);
            }
            return Err(error);
        }
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
        self.meter.complete();
        self.before += self.rows.len();
        Ok(())
    }

    fn want(&mut self, rows: Range<usize>) {
        self.wanted.clear();
        self.wanted.extend(rows);
    }

    /// # Errors
    /// If they are not all finite; the step is then taken back.
    fn compute_logits(&mut self) -> Result<()> {
        let spec = &self.model.spec;
        self.logits.resize(self.wanted.len() * spec.vocab_size, 0.0);
        self.meter.clock.begin_step();
        if !self.wanted.is_empty() {
            self.backend.head(spec, &self.weights, &self.wanted, &mut self.workspace, &mut self.logits);
        }
        self.meter.lap(Component::Head);
        self.check_logits()
    }

    /// Refuses `tokens` that are not valid or do not fit.
    fn check(&self, sequence: usize, tokens: &[u32]) -> Result<()> {
        let state = self.sequence(sequence)?;
        if tokens.is_empty() {
            return Err(Error::option("tokens", format!("sequence {sequence} is to be advanced by none")));
        }
        check_ids(tokens, self.model.spec.vocab_size)?;
        let needed = state.tokens.len() + tokens.len();
        if needed > state.capacity {
            return Err(Error::ContextLength { needed, context: state.capacity });
        }
        Ok(())
    }
}

fn named_twice(number: usize) -> Error {
    Error::option("sequence", format!("sequence {number} is named twice in one step"))
}

/// Refuses ids outside a vocabulary of `vocab` tokens.
///
/// # Errors
/// Names the first.
pub fn check_ids(tokens: &[u32], vocab: usize) -> Result<()> {
    match tokens.iter().find(|&&id| id as usize >= vocab) {
        None => Ok(()),
        Some(id) => {
            let message =
                format!("id {id} is outside the model's vocabulary of {vocab}: is the tokenizer another model's?");
            Err(Error::option("tokens", message))
        }
    }
}
