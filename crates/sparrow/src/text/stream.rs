//! Ids to text as they come.

use std::sync::Arc;

use super::tokenizer::Tokenizer;
use crate::error::Result;

/// Turns ids into text piece by piece.
pub struct TextStream {
    tokenizer: Arc<Tokenizer>,
    /// A short tail of the sequence.
    ids: Vec<u32>,
    /// Bytes of the tail's text that were given out.
    shown: usize,
}

impl TextStream {
    /// Text of ids as they come, after `prompt` (whose text is not repeated).
    ///
    /// # Errors
    /// If the tokenizer's decoder refuses the prompt.
    pub fn new(tokenizer: Arc<Tokenizer>, prompt: &[u32]) -> Result<TextStream> {
        // Only the last few ids bear on how the next is spelled (a leading space, a character split over tokens).
        let ids = prompt[prompt.len().saturating_sub(16)..].to_vec();
        let shown = tokenizer.decode(&ids)?.len();
        Ok(TextStream { tokenizer, ids, shown })
    }

    /// The text that `id` adds; empty while a character is incomplete.
    ///
    /// # Errors
    /// If the tokenizer's decoder refuses it.
    pub fn push(&mut self, id: u32) -> Result<String> {
        const TAIL: usize = 32;
        self.ids.push(id);
        let text = self.tokenizer.decode(&self.ids)?;
        // An incomplete character decodes to U+FFFD: wait for the rest, but not forever.
        if text.ends_with('\u{fffd}') && self.ids.len() < 2 * TAIL {
            return Ok(String::new());
        }
        let piece = text.get(self.shown..).unwrap_or_default().to_owned();
        self.shown = text.len();
        if self.ids.len() >= TAIL {
            self.ids.drain(..self.ids.len() - TAIL / 2);
            self.shown = self.tokenizer.decode(&self.ids)?.len();
        }
        Ok(piece)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn streamed_pieces_make_the_whole_text() {
        let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/demo");
        let tokenizer = Arc::new(Tokenizer::load(&demo).unwrap());
        let text = "Lily said: \u{201c}h\u{e9}llo \u{1f426} world\u{201d}. ".repeat(9);
        let ids = tokenizer.encode(&text, true).unwrap();
        for split in [1, 7, ids.len() / 2] {
            let mut stream = TextStream::new(tokenizer.clone(), &ids[..split]).unwrap();
            let rest: String = ids[split..].iter().map(|&id| stream.push(id).unwrap()).collect();
            let whole = tokenizer.decode(&ids).unwrap();
            assert!(whole.ends_with(&rest), "split at {split}: {rest:?}");
            assert!(rest.len() + 4 * split * 8 >= whole.len());
        }
    }
}
