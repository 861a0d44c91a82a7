//! Ids of a text of which only some parts may contain special tokens: a prompt with what a user wrote in it.

use std::collections::BTreeSet;
use std::ops::Range;

use tokenizers::{
    AddedVocabulary, Encoding, Model, NormalizedString, NormalizerWrapper, OffsetReferential, OffsetType,
    PreTokenizedString, PreTokenizer,
};

use super::quiet::quietly;
use super::tokenizer::Tokenizer;
use crate::error::Result;

/// Characters that no text may use for itself, as Unicode has it.
const NONCHARACTERS: std::ops::RangeInclusive<char> = '\u{fdd0}'..='\u{fdef}';

impl Tokenizer {
    /// Ids of the texts of `pieces`, one after the other, as those of one text. Special tokens count where they are part of pieces
    /// that are `(text, true)`; in the others they are the characters that they are written with. With `special`, also the ids that
    /// the tokenizer adds around a text.
    ///
    /// # Errors
    /// If the tokenizer refuses the text.
    pub fn encode_pieces(&self, pieces: &[(&str, bool)], special: bool) -> Result<Vec<u32>> {
        let text: String = pieces.iter().map(|(text, _)| *text).collect();
        let encoding = quietly("the text cannot be encoded", || {
            let words = self.split_at_tokens(&text, &plain_ranges(pieces));
            let encoding = self.encode_words(words?)?;
            self.inner().post_process(encoding, None, special)
        })?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The text, normalised and cut at its added tokens, but for special ones that are not outside of `plain`.
    ///
    /// A mark inside of such a token hides it from the library, and is taken out again before the text is cut into words: so spaces,
    /// merges and prefixes are those of the text without it.
    fn split_at_tokens(&self, text: &str, plain: &[Range<usize>]) -> tokenizers::Result<PreTokenizedString> {
        let mark = NONCHARACTERS.into_iter().find(|&mark| !text.contains(mark));
        let mark = mark.ok_or("the text has every noncharacter of Unicode from U+FDD0 to U+FDEF")?;
        let (added, normalizer) = (self.inner().get_added_vocabulary(), self.inner().get_normalizer());
        let mut hidden = BTreeSet::new();
        loop {
            let marked = with_marks(text, &hidden, mark);
            let mut split = added.extract_and_normalize::<NormalizerWrapper>(normalizer, &marked);
            let before = hidden.len();
            for range in special_ranges(added, &split) {
                let unmarked = |at: usize| at - mark.len_utf8() * marked[..at].matches(mark).count();
                let range = trimmed(text, unmarked(range.start)..unmarked(range.end));
                if plain.iter().any(|plain| plain.start < range.end && range.start < plain.end) {
                    // Between any two of its characters.
                    hidden.extend(text[range.clone()].char_indices().skip(1).map(|(i, _)| range.start + i));
                }
            }
            if hidden.len() == before {
                let unmark = |word: &mut NormalizedString| word.replace(mark, "");
                return if hidden.is_empty() { Ok(split) } else { split.normalize(unmark).map(|()| split) };
            }
        }
    }

    fn encode_words(&self, mut text: PreTokenizedString) -> tokenizers::Result<Encoding> {
        if let Some(words) = self.inner().get_pre_tokenizer() {
            words.pre_tokenize(&mut text)?;
        }
        text.tokenize(|word| self.inner().get_model().tokenize(word.get()))?;
        text.into_encoding(None, 0, OffsetType::None)
    }
}

/// Where the pieces without special tokens are in their text.
fn plain_ranges(pieces: &[(&str, bool)]) -> Vec<Range<usize>> {
    let mut end = 0;
    let ranges = pieces.iter().map(|(text, special)| {
        let start = end;
        end += text.len();
        (start..end, special)
    });
    ranges.filter(|(range, special)| !**special && !range.is_empty()).map(|(range, _)| range).collect()
}

fn with_marks(text: &str, at: &BTreeSet<usize>, mark: char) -> String {
    let mut marked = String::with_capacity(text.len() + at.len() * mark.len_utf8());
    let mut from = 0;
    for &at in at {
        marked.push_str(&text[from..at]);
        marked.push(mark);
        from = at;
    }
    marked + &text[from..]
}

/// Where special tokens were found.
fn special_ranges(added: &AddedVocabulary, split: &PreTokenizedString) -> Vec<Range<usize>> {
    let splits = split.get_splits(OffsetReferential::Original, OffsetType::Byte).into_iter();
    let special = splits.filter(|(_, _, tokens)| {
        let id = tokens.as_ref().and_then(|tokens| tokens.first()).map(|token| token.id);
        id.and_then(|id| added.simple_id_to_token(id)).is_some_and(|token| added.is_special_token(&token))
    });
    special.map(|(_, (start, end), _)| start..end).collect()
}

/// Without the spaces around it that a token took along, unless it is nothing else.
fn trimmed(text: &str, range: Range<usize>) -> Range<usize> {
    let found = &text[range.clone()];
    match found.trim() {
        "" => range,
        token => {
            let start = range.start + (found.len() - found.trim_start().len());
            start..start + token.len()
        }
    }
}
