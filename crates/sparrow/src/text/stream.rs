//! Ids to text as they come.

use std::sync::Arc;

use super::decoder::Decoding;
use super::quiet::quietly;
use super::tokenizer::Tokenizer;
use crate::error::Result;

/// Turns ids into text piece by piece. The pieces together, and what [`finish`](Self::finish) adds, are what decoding the prompt
/// and all ids at once adds to decoding the prompt alone. Where a prompt ends inside of a character, which its own text shows as
/// U+FFFD, they begin with the whole character: they are all that the two texts do not have in common.
///
/// Byte tokens in a row (`<0xE0>`) are held back until the row ends, for one wrong byte changes the text of all.
#[derive(Clone)]
pub struct TextStream {
    tokenizer: Arc<Tokenizer>,
    decoding: Decoding,
    /// What the prompt's own text ends with and may still change.
    shown: String,
}

impl TextStream {
    /// Text of ids as they come, after `prompt` (whose text is not repeated).
    ///
    /// # Errors
    /// If the tokenizer's decoder refuses the prompt.
    pub fn new(tokenizer: Arc<Tokenizer>, prompt: &[u32]) -> Result<TextStream> {
        let decoding = Decoding::new(tokenizer.inner().get_decoder());
        let mut stream = TextStream { tokenizer, decoding, shown: String::new() };
        prompt.iter().try_for_each(|&id| stream.decode(id).map(drop))?;
        stream.shown = stream.clone().finish()?;
        Ok(stream)
    }

    /// The text that `id` settles; empty while later ids may change it.
    ///
    /// # Errors
    /// If the tokenizer's decoder refuses it.
    pub fn push(&mut self, id: u32) -> Result<String> {
        let text = self.decode(id)?;
        Ok(self.unshown(text))
    }

    /// The text that was held back: there are no more ids.
    ///
    /// # Errors
    /// If the tokenizer's decoder refuses it.
    pub fn finish(&mut self) -> Result<String> {
        let text = quietly(REFUSED, || self.decoding.finish())?;
        Ok(self.unshown(text))
    }

    /// Bytes that [`finish`](Self::finish) would make a text of, be some of the prompt; empty if they are incomplete or wrong.
    pub(super) fn held_text(&self) -> &[u8] {
        self.decoding.held_text()
    }

    fn decode(&mut self, id: u32) -> Result<String> {
        match self.tokenizer.text_token(id) {
            Some(token) => quietly(REFUSED, || self.decoding.push(token)),
            None => Ok(String::new()),
        }
    }

    /// Without what the prompt's text showed already.
    fn unshown(&mut self, text: String) -> String {
        let pairs = text.chars().zip(self.shown.chars());
        let common = pairs.take_while(|(a, b)| a == b).map(|(a, _)| a.len_utf8()).sum();
        if common < text.len() {
            self.shown.clear();
            return text[common..].to_owned();
        }
        self.shown.drain(..common);
        String::new()
    }
}

const REFUSED: &str = "the tokens cannot be decoded";
