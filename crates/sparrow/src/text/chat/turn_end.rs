//! What ends an answer.

use minijinja::{Value, context};

use super::template::{ChatTemplate, Conversation};
use crate::text::tokenizer::Tokenizer;

/// What a template puts after an answer: a model that was trained with it writes that when it is done, whether or not it counts
/// among its end-of-sequence ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TurnEnd {
    /// A token.
    Token(u32),
    /// Words that are no token.
    Text(String),
    /// Nothing.
    Nothing,
}

impl ChatTemplate {
    /// What ends an answer; nothing where the template does not say.
    pub fn turn_end(&self, tokenizer: &Tokenizer) -> TurnEnd {
        const ANSWER: &str = "The answer.";
        let message = |role, content| context! { role, content };
        let conversation = Conversation {
            messages: [message("user", "A question?"), message("assistant", ANSWER)].into_iter().collect::<Value>(),
            ..Conversation::default()
        };
        let Ok(rendered) = self.render(&conversation) else { return TurnEnd::Nothing };
        let Some((_, end)) = rendered.rsplit_once(ANSWER) else { return TurnEnd::Nothing };
        let end = end.trim();
        let tokens = tokenizer.added_tokens().into_iter().filter(|token| end.starts_with(&token.text));
        match tokens.max_by_key(|token| token.text.len()) {
            Some(token) => TurnEnd::Token(token.id),
            None => match end.lines().next() {
                Some(line) => TurnEnd::Text(line.to_owned()),
                None => TurnEnd::Nothing,
            },
        }
    }
}
