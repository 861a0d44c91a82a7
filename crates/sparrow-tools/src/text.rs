//! The text that a model is calibrated on: its tokens, and the parts that are kept apart to measure on.

use std::path::Path;

use sha2::{Digest, Sha256};
use sparrow::internals::checkpoint::hex;
use sparrow::internals::record::CalibrationText;
use sparrow::internals::spec::ModelSpec;
use sparrow::{Error, Result, Tokenizer};

/// Share of the text's tokens, at the end, that nothing was chosen on: the written quality is measured there.
const HELD_OUT: f64 = 0.1;

/// A text in tokens.
pub(crate) struct Text {
    file: String,
    /// Of the file.
    pub sha256: String,
    ids: Vec<u32>,
    /// Tokens that the model reads together: as many as were asked for, or its context.
    pub window: usize,
    /// Tokens of a part that is kept apart, and how many there are.
    part: usize,
    parts: usize,
}

impl Text {
    /// The first `max_tokens` tokens of the file at `path`, the last tenth held out, and of `parts` tenths those before it kept
    /// apart too.
    ///
    /// # Errors
    /// If the file cannot be read, or is too short for one window beside what is kept apart.
    pub fn read(
        path: &Path,
        tokenizer: &Tokenizer,
        max_tokens: usize,
        window: usize,
        spec: &ModelSpec,
        parts: usize,
    ) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
        let mut ids = tokenizer.encode(&text, false)?;
        ids.truncate(max_tokens);
        let window = window.min(spec.context_length());
        let part = ((ids.len() as f64 * HELD_OUT) as usize).max(2);
        if window < 2 || ids.len() < parts * part + window {
            let message = format!("has {} tokens: too few for one window of {window} and a held-out tenth", ids.len());
            return Err(Error::option("text", message));
        }
        let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Text { file, sha256: hex(&Sha256::digest(text.as_bytes())), ids, window, part, parts })
    }

    /// Tokens to calibrate on.
    pub fn seen(&self) -> &[u32] {
        &self.ids[..self.ids.len() - self.parts * self.part]
    }

    /// Tokens to search on: what is kept apart before the held-out tenth.
    pub fn searched(&self) -> &[u32] {
        &self.ids[self.seen().len()..self.ids.len() - self.part]
    }

    /// Tokens to measure the written quality on.
    pub fn held_out(&self) -> &[u32] {
        &self.ids[self.ids.len() - self.part..]
    }

    /// What the held-out tokens are called.
    pub fn held_out_name(&self) -> String {
        format!("held-out tenth of {}", self.file)
    }

    /// The record of a calibration that used `tokens` of it.
    pub fn calibration(&self, tokens: usize) -> CalibrationText {
        CalibrationText { file: self.file.clone(), sha256: self.sha256.clone(), tokens }
    }
}
