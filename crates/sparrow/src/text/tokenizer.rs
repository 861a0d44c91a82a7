//! Text ↔ ids, from `tokenizer.json` and what is declared beside it.

use std::path::Path;

use super::declared::Declared;
use super::quiet::quietly;
use crate::checkpoint::ModelFiles;
use crate::error::{Error, Result};

/// A `tokenizer.json`, with what generation needs of it.
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    declared: Declared,
}

/// A token that is found in a text as it is spelled, before the rest is cut.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddedToken {
    /// Its id.
    pub id: u32,
    /// How it is spelled.
    pub text: String,
    /// Whether it is a command of the model's format, not part of what is said.
    pub special: bool,
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
        let declared = Declared::read(files)?;
        let inner = quietly("is not a tokenizer that can be read", || {
            let mut inner = tokenizers::Tokenizer::from_bytes(bytes)?;
            // They are of the training that saved the file; nobody asked for them here.
            inner.with_truncation(None)?.with_padding(None);
            let beside = declared.tokens_beside(&inner);
            inner.add_tokens(&beside);
            Ok(inner)
        });
        match inner {
            Ok(inner) => Ok(Tokenizer { inner, declared }),
            Err(Error::Tokenizer(reason)) => Err(Error::Tokenizer(format!("{}: {reason}", path.display()))),
            Err(other) => Err(other),
        }
    }

    pub(super) fn inner(&self) -> &tokenizers::Tokenizer {
        &self.inner
    }

    /// Ids of `text`; with `special`, also those the tokenizer adds around a text (a beginning-of-sequence token).
    ///
    /// # Errors
    /// If the tokenizer refuses the text.
    pub fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>> {
        let encoding = quietly("the text cannot be encoded", || self.inner.encode_fast(text, special))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The ids that the tokenizer puts before a text: a beginning-of-sequence token, or none.
    ///
    /// # Errors
    /// If the tokenizer refuses texts.
    pub fn beginning(&self) -> Result<Vec<u32>> {
        const TEXT: &str = "a";
        let (alone, mut begun) = (self.encode(TEXT, false)?, self.encode(TEXT, true)?);
        let text = (0..begun.len()).find(|&at| begun[at..].starts_with(&alone));
        begun.truncate(text.unwrap_or(0));
        Ok(begun)
    }

    /// Text of `ids`, without special tokens.
    ///
    /// # Errors
    /// If the tokenizer's decoder refuses them.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        quietly("the tokens cannot be decoded", || self.inner.decode(ids, true))
    }

    /// Text of `ids`, special tokens as they are spelled.
    ///
    /// # Errors
    /// As [`decode`](Self::decode).
    pub fn decode_with_special(&self, ids: &[u32]) -> Result<String> {
        quietly("the tokens cannot be decoded", || self.inner.decode(ids, false))
    }

    /// The token of `id` where it is part of a text: none of a special one, and of an id that there is not.
    pub(super) fn text_token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id).filter(|token| !self.inner.get_added_vocabulary().is_special_token(token))
    }

    /// Ids the tokenizer knows, added tokens included.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// The id of a token, as the vocabulary spells it.
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// The token of an id, as the vocabulary spells it.
    pub fn id_to_token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// The token that a model's files name `bos_token`, `eos_token` or another `…_token`.
    pub fn special_token(&self, name: &str) -> Option<&str> {
        self.declared.named(name)
    }

    /// The tokens that were added to the vocabulary, special or not.
    pub fn added_tokens(&self) -> Vec<AddedToken> {
        let added = self.inner.get_added_tokens_decoder().into_iter();
        added.map(|(id, token)| AddedToken { id, text: token.content, special: token.special }).collect()
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
