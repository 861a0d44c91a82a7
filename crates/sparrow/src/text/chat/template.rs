//! A model's chat template: conversations in, prompts out.

use std::path::{Path, PathBuf};

use minijinja::value::Serde;
use minijinja::{Environment, Value};
use serde::Serialize;

use super::environment::{Refusal, environment, without_generation_blocks};
use super::marks::{Marks, entries};
use super::source::{self, Source, Sources};
use crate::checkpoint::ModelFiles;
use crate::error::{Error, Result};
use crate::text::tokenizer::Tokenizer;

/// The names that templates know special tokens by.
const SPECIAL: [&str; 7] = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// What transformers calls a message's reasoning, the best name first.
const REASONING: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

/// Templates in the environment.
const DEFAULT: &str = "default";
const TOOL_USE: &str = "tool_use";

/// A template that turns conversations into prompts, as transformers renders it.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    /// Where the default one is, and the one for conversations with tools if there is one.
    default: PathBuf,
    tool_use: Option<PathBuf>,
    /// Special tokens by the name that templates use.
    special: Vec<(&'static str, String)>,
}

/// What a template is rendered with.
#[derive(Debug, Clone, Default)]
pub struct Conversation {
    /// A list of objects with `role` and `content`, and whatever else the template reads.
    pub messages: Value,
    /// Schemas of functions that the model may call.
    pub tools: Option<Value>,
    /// What the model may quote.
    pub documents: Option<Value>,
    /// End with the beginning of an answer.
    pub add_generation_prompt: bool,
    /// More that the template reads, by name, such as `enable_thinking`.
    pub variables: Vec<(String, Value)>,
}

impl Conversation {
    /// One that waits for an answer, from a list of what was said.
    pub fn to_answer(messages: impl Serialize) -> Self {
        Conversation { messages: Value::from(Serde(messages)), add_generation_prompt: true, ..Conversation::default() }
    }
}

impl ChatTemplate {
    /// The template of a model, if it has one.
    ///
    /// # Errors
    /// If a file cannot be read, or the template is no valid Jinja.
    pub fn read(files: &ModelFiles, tokenizer: &Tokenizer) -> Result<Option<Self>> {
        source::find(files)?.map(|sources| Self::new(sources, tokenizer)).transpose()
    }

    /// The template in the file at `path`, with the special tokens of a model.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn read_file(path: &Path, tokenizer: &Tokenizer) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
        let default = Source { path: path.to_owned(), text };
        Self::new(Sources { default, tool_use: None }, tokenizer)
    }

    fn new(sources: Sources, tokenizer: &Tokenizer) -> Result<Self> {
        let special = SPECIAL.into_iter().filter_map(|name| Some((name, tokenizer.special_token(name)?.to_owned())));
        let Sources { default, tool_use } = sources;
        let mut template = ChatTemplate {
            environment: environment(),
            default: default.path.clone(),
            tool_use: tool_use.as_ref().map(|source| source.path.clone()),
            special: special.collect(),
        };
        for (name, source) in [(DEFAULT, Some(default)), (TOOL_USE, tool_use)] {
            let Some(source) = source else { continue };
            let text = without_generation_blocks(&source.text).into_owned();
            template.environment.add_template_owned(name, text).map_err(|e| explain(&source.path, &e))?;
        }
        Ok(template)
    }

    /// The text of a conversation.
    ///
    /// # Errors
    /// If the template refuses the conversation or fails; the message says where and why.
    pub fn render(&self, conversation: &Conversation) -> Result<String> {
        let Conversation { messages, tools, documents, add_generation_prompt, variables } = conversation;
        let (name, path) = match (&self.tool_use, tools) {
            (Some(path), Some(_)) => (TOOL_USE, path),
            _ => (DEFAULT, &self.default),
        };
        // Templates ask whether tools are none, not whether they are there.
        let or_none = |value: &Option<Value>| value.clone().unwrap_or(Value::from(()));
        let own = [
            (
                "messages",
                messages.try_iter().map_or_else(|_| messages.clone(), |all| all.map(with_reasoning).collect()),
            ),
            ("tools", or_none(tools)),
            ("documents", or_none(documents)),
            ("add_generation_prompt", Value::from(*add_generation_prompt)),
        ];
        let special = self.special.iter().map(|(name, text)| (*name, Value::from(text.as_str())));
        let given = variables.iter().map(|(name, value)| (name.as_str(), value.clone()));
        let context = Value::from_pairs(special.chain(given).chain(own));
        let template = self.environment.get_template(name).expect("it was added");
        template.render(context).map_err(|e| explain(path, &e))
    }

    /// The tokens of a conversation. Special tokens in its strings are text: only those of the template mean something.
    ///
    /// # Errors
    /// As [`render`](Self::render), or if the tokenizer refuses the text.
    pub fn encode(&self, tokenizer: &Tokenizer, conversation: &Conversation) -> Result<Vec<u32>> {
        let special = tokenizer.added_tokens().into_iter().filter(|token| token.special);
        let special: Vec<String> = special.map(|token| token.text).collect();
        let everything: Value =
            [Some(&conversation.messages), conversation.tools.as_ref(), conversation.documents.as_ref()]
                .into_iter()
                .flatten()
                .cloned()
                .collect();
        let marks = Marks::new(&special, &everything);
        let marked = Conversation {
            messages: marks.mark(&conversation.messages),
            tools: conversation.tools.as_ref().map(|tools| marks.mark(tools)),
            documents: conversation.documents.as_ref().map(|documents| marks.mark(documents)),
            ..conversation.clone()
        };
        let pieces = marks.pieces(&self.render(&marked)?);
        let pieces: Vec<(&str, bool)> = pieces.iter().map(|(text, special)| (text.as_str(), *special)).collect();
        tokenizer.encode_pieces(&pieces, false)
    }
}

/// A message that says what it thought under every name that templates look for.
fn with_reasoning(message: Value) -> Value {
    let get = |name: &str| message.get_attr(name).ok().filter(|v| !v.is_undefined() && !v.is_none());
    let Some(reasoning) = REASONING.into_iter().find_map(get) else { return message };
    let [content, thinking] = [REASONING[0], REASONING[1]].map(Value::from);
    let missing = message.get_attr(REASONING[1]).is_ok_and(|v| v.is_undefined());
    let first = missing.then(|| (thinking, reasoning.clone()));
    let others = entries(&message).filter(|(key, _)| *key != content);
    Value::from_pairs(first.into_iter().chain(others).chain([(content.clone(), reasoning)]))
}

/// What went wrong in the template at `path`, and where.
fn explain(path: &Path, error: &minijinja::Error) -> Error {
    let line = error.line().map_or_else(String::new, |line| format!(", line {line}"));
    let refusal = std::error::Error::source(error).and_then(|source| source.downcast_ref::<Refusal>());
    let message = match (refusal, error.detail()) {
        (Some(Refusal(reason)), _) => format!("the chat template{line} refuses the conversation: {reason}"),
        (None, Some(detail)) => format!("the chat template{line}: {}: {detail}", error.kind()),
        (None, None) => format!("the chat template{line}: {}", error.kind()),
    };
    Error::Template { path: path.to_owned(), message }
}
