//! What a request writes: text of its ids, until a stop string.

use std::sync::Arc;

use super::stop::StopText;
use super::stream::TextStream;
use super::tokenizer::Tokenizer;
use crate::error::Result;

/// Text that is settled, and the stop string that was completed, if one was.
pub type Settled = (String, Option<String>);

/// Ids to text, looking out for stop strings.
pub struct Written {
    stream: TextStream,
    stop: StopText,
}

impl Written {
    /// After `prompt`, until one of `stop`.
    ///
    /// # Errors
    /// If the tokenizer's decoder refuses the prompt.
    pub fn new(tokenizer: Arc<Tokenizer>, prompt: &[u32], stop: Vec<String>) -> Result<Self> {
        Ok(Written { stream: TextStream::new(tokenizer, prompt)?, stop: StopText::new(stop) })
    }

    /// Takes the next id.
    ///
    /// # Errors
    /// If the tokenizer's decoder refuses it.
    pub fn push(&mut self, id: u32) -> Result<Settled> {
        let settled = self.stop.push(&self.stream.push(id)?);
        if settled.1.is_some() || !self.stop.may_end_with(self.stream.held_text()) {
            return Ok(settled);
        }
        // A stop string is complete as soon as it is if the text ends here, though later ids may change what is held back.
        let held = self.stream.clone().finish()?;
        match self.stop.is_completed_by(&held) {
            true => {
                let (text, stopped) = self.stop.push(&self.stream.finish()?);
                Ok((settled.0 + &text, stopped))
            }
            false => Ok(settled),
        }
    }

    /// There are no more ids: what was held back, in which a stop string may be.
    ///
    /// # Errors
    /// If the tokenizer's decoder refuses it.
    pub fn finish(&mut self) -> Result<Settled> {
        let (text, stopped) = self.stop.push(&self.stream.finish()?);
        Ok(match stopped {
            Some(_) => (text, stopped),
            None => (text + &self.stop.rest(), None),
        })
    }
}
