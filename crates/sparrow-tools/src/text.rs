//! Texts in tokens, as they are evaluated and calibrated on: windows, the parts that are kept apart to measure on.

use std::path::Path;

use sha2::{Digest, Sha256};
use sparrow::internals::checkpoint::hex;
use sparrow::internals::record::CalibrationText;
use sparrow::internals::run::check_ids;
use sparrow::internals::spec::ModelSpec;
use sparrow::{Error, Result, Tokenizer};

/// Share of the text's tokens, at the end, that nothing was chosen on: the written quality is measured there.
const HELD_OUT: f64 = 0.1;

/// The first `count` tokens of a text, of which no more is read than they take.
///
/// # Errors
/// If the tokenizer refuses the text.
pub fn first_tokens(tokenizer: &Tokenizer, text: &str, count: usize) -> Result<Vec<u32>> {
    /// Tokens before a cut that may be others than in the whole text.
    const MARGIN: usize = 64;
    const BYTES_PER_TOKEN: usize = 8;
    let wanted = count.saturating_add(MARGIN);
    let mut bytes = wanted.saturating_mul(BYTES_PER_TOKEN);
    loop {
        let cut = text.floor_char_boundary(bytes);
        let mut ids = tokenizer.encode(&text[..cut], false)?;
        if cut == text.len() || ids.len() >= wanted {
            ids.truncate(count);
            return Ok(ids);
        }
        bytes = bytes.saturating_mul(2);
    }
}

/// `ids` cut into windows of `window` tokens, one after the other, each of which begins with `beginning`.
///
/// # Errors
/// If a window has no room for more than its beginning.
pub fn windows(ids: &[u32], beginning: &[u32], window: usize) -> Result<Vec<u32>> {
    let room = window.checked_sub(beginning.len()).filter(|&room| room > 0);
    let room =
        room.ok_or_else(|| Error::option("window", format!("must be above {}, found {window}", beginning.len())))?;
    Ok(ids.chunks(room).flat_map(|part| beginning.iter().chain(part)).copied().collect())
}

/// How a text is read.
pub(crate) struct Reading {
    /// Tokens to use, from the first.
    pub max_tokens: usize,
    /// Tokens of a window.
    pub window: usize,
    /// Windows begin with the tokenizer's beginning-of-sequence token.
    pub bos: bool,
    /// Tenths that are kept apart.
    pub parts: usize,
}

/// A text in tokens, in windows.
pub(crate) struct Text {
    file: String,
    /// Of the file.
    pub sha256: String,
    /// Tokens that the model reads together: as many as were asked for, or its context.
    pub window: usize,
    /// Whether each window begins with a beginning-of-sequence token.
    bos: bool,
    seen_tokens: usize,
    seen: Vec<u32>,
    searched: Vec<u32>,
    held_out: Vec<u32>,
}

impl Text {
    /// The first tokens of the file at `path`, the last tenth of them held out, and where it has two parts the tenth before it kept
    /// apart too.
    ///
    /// # Errors
    /// If the file cannot be read, is too short for one window beside what is kept apart, or has a token outside of the model's
    /// vocabulary.
    pub fn read(path: &Path, tokenizer: &Tokenizer, reading: &Reading, spec: &ModelSpec) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
        let ids = first_tokens(tokenizer, &text, reading.max_tokens)?;
        let beginning = if reading.bos { tokenizer.beginning()? } else { Vec::new() };
        let window = reading.window.min(spec.context_length());
        let part = ((ids.len() as f64 * HELD_OUT) as usize).max(2);
        if window < 2 || ids.len() + beginning.len() < reading.parts * part + window {
            let message = format!("has {} tokens: too few for one window of {window} and a held-out tenth", ids.len());
            return Err(Error::option("text", message));
        }
        check_ids(&beginning, spec.vocab_size)?;
        check_ids(&ids, spec.vocab_size)?;
        let (rest, held_out) = ids.split_at(ids.len() - part);
        let (seen, searched) = rest.split_at(ids.len() - reading.parts * part);
        let cut = |ids| windows(ids, &beginning, window);
        Ok(Text {
            file: path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            sha256: hex(&Sha256::digest(text.as_bytes())),
            window,
            bos: !beginning.is_empty(),
            seen_tokens: seen.len(),
            seen: cut(seen)?,
            searched: cut(searched)?,
            held_out: cut(held_out)?,
        })
    }

    /// Windows to calibrate on.
    pub fn seen(&self) -> &[u32] {
        &self.seen
    }

    /// Windows to search on: of what is kept apart before the held-out tenth.
    pub fn searched(&self) -> &[u32] {
        &self.searched
    }

    /// Windows to measure the written quality on.
    pub fn held_out(&self) -> &[u32] {
        &self.held_out
    }

    /// What the held-out tokens are called.
    pub fn held_out_name(&self) -> String {
        format!("held-out tenth of {}", self.file)
    }

    /// The record of a calibration, which read its tokens if it `reads`.
    pub fn calibration(&self, reads: bool) -> CalibrationText {
        let tokens = if reads { self.seen_tokens } else { 0 };
        CalibrationText { file: self.file.clone(), sha256: self.sha256.clone(), tokens, bos: self.bos }
    }
}
