//! What one step of a session is asked to do.

/// Whose logits are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Logits {
    /// Of no token: a piece of a prompt that goes on.
    None,
    /// Of the last token.
    #[default]
    Last,
    /// Of every token.
    All,
}

/// Tokens that are appended to a sequence: a prompt, a piece of one, or a single token.
#[derive(Debug, Clone, Copy)]
pub struct Segment<'a> {
    /// Which sequence.
    pub sequence: usize,
    /// What is appended.
    pub tokens: &'a [u32],
    /// Whose logits are wanted.
    pub logits: Logits,
}
