//! How a model is talked to: by its chat template.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use serde::Serialize;
use sparrow::engine::Request;
use sparrow::internals::checkpoint::ModelFiles;
use sparrow::internals::text::chat::{ChatTemplate, Conversation, TurnEnd};
use sparrow::{Error, Loaded, Tokenizer};

/// `--chat-template`.
#[derive(Debug, clap::Args)]
pub struct TemplateArg {
    /// Jinja template that makes a prompt of a conversation [default: the model's own]
    #[arg(long, value_name = "FILE", help_heading = "Text")]
    pub chat_template: Option<PathBuf>,
}

/// Something that was said.
#[derive(Debug, Clone, Serialize)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: &'static str,
    /// What.
    pub content: String,
}

impl Message {
    /// Of the person at the keyboard.
    pub fn user(content: impl Into<String>) -> Self {
        Message { role: "user", content: content.into() }
    }
}

/// The template of a model, and what its answers end with.
pub struct Dialogue {
    template: ChatTemplate,
    tokenizer: Arc<Tokenizer>,
    end: TurnEnd,
}

impl Dialogue {
    /// With the template in `file`, or the model's own.
    pub fn new(loaded: &Loaded, files: &ModelFiles, file: Option<&Path>) -> anyhow::Result<Self> {
        let tokenizer = loaded.tokenizer()?.clone();
        let template = match file {
            Some(file) => Some(ChatTemplate::read_file(file, &tokenizer)?),
            None => ChatTemplate::read(files, &tokenizer)?,
        };
        let template = template.with_context(|| {
            format!(
                "{} has no chat template, so it does not say how to talk to it: continue a text with `sparrow generate`, \
                 or pass a template with --chat-template FILE",
                files.path().display()
            )
        })?;
        Ok(Dialogue { end: template.turn_end(&tokenizer), template, tokenizer })
    }

    /// `request` for the answer to `messages`.
    ///
    /// # Errors
    /// If the template refuses them.
    pub fn request(&self, messages: &[Message], mut request: Request) -> Result<Request, Error> {
        request.prompt = self.template.encode(&self.tokenizer, &Conversation::to_answer(messages))?;
        match &self.end {
            TurnEnd::Token(id) => request.stop_tokens.push(*id),
            TurnEnd::Text(text) => request.stop.push(text.clone()),
            TurnEnd::Nothing => {}
        }
        Ok(request)
    }
}
