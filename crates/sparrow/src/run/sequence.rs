//! What a session knows of one sequence beside its cache.

use crate::backend::fraction;

/// One sequence.
#[derive(Debug, Default)]
pub struct Sequence {
    /// What is cached.
    pub tokens: Vec<u32>,
    /// Tokens there is room for.
    pub capacity: usize,
    /// Tokens of the sequence that its keys are rotated for: what some kinds of RoPE depend on.
    pub rotated_for: usize,
    /// Tokens it is known to come to: those of a prompt that is computed piece by piece.
    pub expected: usize,
    /// Counted so far.
    pub stats: SequenceStats,
}

/// What one sequence took since it was added.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SequenceStats {
    /// Tokens computed.
    pub tokens: u64,
    /// Steps that it took part in.
    pub steps: u64,
    /// What was computed for them, and what there was: neurons, or weights.
    counts: (u64, u64),
}

impl SequenceStats {
    /// A token ran.
    pub(super) fn add(&mut self, (active, of): (u64, u64)) {
        self.tokens += 1;
        self.counts = (self.counts.0 + active, self.counts.1 + of);
    }

    /// What was active ÷ all, averaged over tokens and layers; 1 where nothing was selected.
    pub fn active_fraction(&self) -> f64 {
        fraction(self.counts)
    }
}
