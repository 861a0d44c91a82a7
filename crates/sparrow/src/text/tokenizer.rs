//! Text ↔ ids, from `tokenizer.json`.

use std::path::Path;

use crate::checkpoint::ModelFiles;
use crate::error::{Error, Result};

/// A `tokenizer.json`, with what generation needs of it.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tokenizer({} ids)", self.vocab_size())
    }
}

impl Tokenizer {
    /// Loads the tokenizer of the model directory `dir`.
    ///
    /// # Errors
    /// If `tokenizer.json` is missing or malformed.
    pub fn load(dir: &Path) -> Result<Self> {
        Self::read(&ModelFiles::open(dir)?)
    }

    /// The tokenizer that the files of a model describe.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn read(files: &ModelFiles) -> Result<Self> {
        let path = files.path_of("tokenizer.json");
        let Some(bytes) = files.read("tokenizer.json")? else {
            return Err(Error::Tokenizer(format!("{} is missing: the model directory needs it", path.display())));
        };
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
}
