//! Text ↔ ids, from a directory's `tokenizer.json`.

use std::path::Path;

use crate::error::{Error, Result};

/// A `tokenizer.json`, with what generation needs of it.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
}

impl Tokenizer {
    /// Loads the `tokenizer.json` of a model directory.
    ///
    /// # Errors
    /// If it is missing or malformed.
    pub fn load(dir: &Path) -> Result<Self> {
        let path = dir.join("tokenizer.json");
        if !path.is_file() {
            return Err(Error::Tokenizer(format!("{} is missing: the model directory needs it", path.display())));
        }
        let bytes = std::fs::read(&path).map_err(Error::io(&path))?;
        // The library panics on some malformed files.
        let inner = std::panic::catch_unwind(|| tokenizers::Tokenizer::from_bytes(bytes));
        let reason = match inner {
            Ok(Ok(inner)) => return Ok(Tokenizer { inner }),
            Ok(Err(e)) => e.to_string(),
            Err(_) => "is not a tokenizer that can be read".into(),
        };
        Err(Error::Tokenizer(format!("{}: {reason}", path.display())))
    }

    /// Ids of `text`; with `special`, also those the tokenizer adds around a text (a beginning-of-sequence token).
    ///
    /// # Errors
    /// If the tokenizer refuses the text.
    pub fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>> {
        let encoding = self.inner.encode_fast(text, special).map_err(|e| Error::Tokenizer(e.to_string()))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Text of `ids`, without special tokens.
    ///
    /// # Errors
    /// If the tokenizer's decoder refuses them.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        self.inner.decode(ids, true).map_err(|e| Error::Tokenizer(e.to_string()))
    }

    /// Ids the tokenizer knows, added tokens included.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// Whether its ids mean what those of `other` mean, so that predictions of them can be compared.
    ///
    /// # Errors
    /// Names the first id that does not.
    pub fn check_same_vocabulary(&self, other: &Tokenizer) -> Result<()> {
        let ids = self.vocab_size().max(other.vocab_size()) as u32;
        let different = |&id: &u32| self.inner.id_to_token(id) != other.inner.id_to_token(id);
        let Some(id) = (0..ids).find(different) else { return Ok(()) };
        let meaning = |tokenizer: &Tokenizer| {
            tokenizer.inner.id_to_token(id).map_or("no token".to_owned(), |token| format!("{token:?}"))
        };
        let message = format!(
            "id {id} is {} of one model and {} of the other: they need the same",
            meaning(self),
            meaning(other)
        );
        Err(Error::Tokenizer(message))
    }

    /// Text of ids as they come, after `prompt` (whose text is not repeated).
    ///
    /// # Errors
    /// As [`decode`](Self::decode).
    pub fn stream(&self, prompt: &[u32]) -> Result<TextStream<'_>> {
        // Only the last few ids bear on how the next is spelled (a leading space, a character split over tokens).
        let context = prompt[prompt.len().saturating_sub(16)..].to_vec();
        let mut stream = TextStream { tokenizer: self, ids: context, shown: 0 };
        stream.shown = self.decode(&stream.ids)?.len();
        Ok(stream)
    }
}

/// Turns ids into text piece by piece; see [`Tokenizer::stream`].
pub struct TextStream<'a> {
    tokenizer: &'a Tokenizer,
    /// A short tail of the sequence.
    ids: Vec<u32>,
    /// Bytes of the tail's text that were given out.
    shown: usize,
}

impl TextStream<'_> {
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
    use super::*;

    #[test]
    fn streamed_pieces_make_the_whole_text() {
        let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/demo");
        let tokenizer = Tokenizer::load(&demo).unwrap();
        let text = "Lily said: \u{201c}h\u{e9}llo \u{1f426} world\u{201d}. ".repeat(9);
        let ids = tokenizer.encode(&text, true).unwrap();
        for split in [1, 7, ids.len() / 2] {
            let mut stream = tokenizer.stream(&ids[..split]).unwrap();
            let rest: String = ids[split..].iter().map(|&id| stream.push(id).unwrap()).collect();
            let whole = tokenizer.decode(&ids).unwrap();
            assert!(whole.ends_with(&rest), "split at {split}: {rest:?}");
            assert!(rest.len() + 4 * split * 8 >= whole.len());
        }
    }
}
