//! Tokens that are found in a text before anything else.

use serde_json::{Value, json};

use super::vocabulary::{Kind, Vocabulary};
use crate::error::Result;

/// The `added_tokens` of the vocabulary: control tokens and the unknown one are special, those that its makers defined are text.
///
/// # Errors
/// If an id that the file gives a meaning is outside the vocabulary.
pub(super) fn tokens(vocabulary: &Vocabulary) -> Result<Vec<Value>> {
    let mut named = Vec::new();
    for name in ["bos", "eos", "unknown", "padding"] {
        named.extend(vocabulary.special(name)?.map(|(id, _)| id));
    }
    let added = vocabulary.tokens.iter().zip(&vocabulary.kinds).enumerate().filter_map(|(id, (token, kind))| {
        let special = matches!(kind, Kind::Control | Kind::Unknown) || named.contains(&id);
        // A token without text would be found everywhere, and blanks are not blanks any more where pieces are merged.
        let is_text = token.bytes().any(|b| b != b' ');
        let found = is_text && (special || *kind == Kind::UserDefined);
        found.then(|| {
            json!({
                "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": special,
            })
        })
    });
    Ok(added.collect())
}
