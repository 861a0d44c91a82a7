//! The sequences of a session: coming and going, cutting, copying.

use super::Session;
use crate::backend::{Backend, KvOptions};
use crate::error::{Error, Result};
use crate::run::sequence::{Sequence, SequenceStats};

impl<B: Backend> Session<B> {
    /// Adds an empty sequence with room for `capacity` tokens, and returns its number: the lowest that is free.
    ///
    /// # Errors
    /// If the capacity is above the model's context length, or 0.
    pub fn add_sequence(&mut self, capacity: usize) -> Result<usize> {
        self.check_capacity(capacity)?;
        let kv = self.new_kv(capacity)?;
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
        let (spec, dtype) = (&self.model.spec, self.model.default_kv_dtype());
        self.kvs[sequence] = self.backend.kv(spec, dtype, &KvOptions::default(), 0)?;
        Ok(stats)
    }

    /// What a sequence took since it was added or this was asked; it counts anew from here on.
    ///
    /// # Errors
    /// If there is no such sequence.
    pub fn take_stats(&mut self, sequence: usize) -> Result<SequenceStats> {
        Ok(std::mem::take(&mut self.sequence_mut(sequence)?.stats))
    }

    /// Gives a sequence room for `capacity` tokens, if it has less.
    ///
    /// # Errors
    /// If there is no such sequence, or the capacity is above the model's context length, or memory runs out.
    pub fn grow(&mut self, sequence: usize, capacity: usize) -> Result<()> {
        self.check_capacity(capacity)?;
        if capacity > self.sequence(sequence)?.capacity {
            self.backend.grow_kv(&mut self.kvs[sequence], capacity)?;
            self.sequence_mut(sequence)?.capacity = capacity;
        }
        Ok(())
    }

    /// An empty cache, as this session keeps them.
    pub(super) fn new_kv(&self, capacity: usize) -> Result<B::Kv> {
        let dtype = self.kv.dtype.unwrap_or(self.model.default_kv_dtype());
        self.backend.kv(&self.model.spec, dtype, &self.kv, capacity)
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
        // Room and figures belong to a number, whatever sequence it has.
        let mut own = Vec::with_capacity(order.len());
        for number in 0..order.len() {
            let state = self.sequence(number)?;
            own.push((state.capacity, state.stats));
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
        for (number, (capacity, stats)) in own.into_iter().enumerate() {
            self.grow(number, capacity)?;
            self.sequence_mut(number)?.stats = stats;
        }
        Ok(())
    }
}
