//! A conversation: what was said, and the engines that answer.

use std::io::Write;
use std::path::Path;

use anyhow::Context;
use sparrow::engine::{Engine, EngineOptions, Event, Finish, Request, Usage};
use sparrow::{Error, KvOptions, Loaded, Selector, SelectorSpec};

use super::interrupt::Interrupt;
use crate::dialogue::{Dialogue, Message};
use crate::output::write_whole;

/// What was said so far, and who answers.
pub struct Talk {
    loaded: Loaded,
    kv: KvOptions,
    dialogue: Dialogue,
    /// What every answer is asked for with.
    request: Request,
    messages: Vec<Message>,
    /// The dense one and the sparse one, each with its own cache, from when they are first asked.
    engines: [Option<Engine>; 2],
    /// Which of them answers.
    sparse: bool,
}

/// How an answer came about.
pub struct Answer {
    /// Why it ended.
    pub finish: Finish,
    /// What it took.
    pub usage: Usage,
}

impl Talk {
    /// A conversation that begins with `system`, if there is one.
    ///
    /// # Errors
    /// If the template refuses it.
    pub fn new(
        loaded: Loaded,
        kv: KvOptions,
        dialogue: Dialogue,
        request: Request,
        system: Option<String>,
    ) -> anyhow::Result<Self> {
        let messages: Vec<Message> = system.into_iter().map(|content| Message { role: "system", content }).collect();
        let sparse = !loaded.selector_spec.is_dense();
        let talk = Talk { loaded, kv, dialogue, request, messages, engines: [None, None], sparse };
        let first = [&talk.messages[..], &[Message::user("Hello")]].concat();
        talk.dialogue.request(&first, talk.request.clone())?;
        Ok(talk)
    }

    /// Forgets all but the system's message.
    pub fn reset(&mut self) {
        self.messages.retain(|message| message.role == "system");
    }

    /// Writes what was said.
    pub fn save(&self, path: &Path) -> anyhow::Result<()> {
        let mut json = serde_json::to_vec_pretty(&self.messages)?;
        json.push(b'\n');
        write_whole(path, &json)
    }

    /// Answers dense or sparse from here on.
    ///
    /// # Errors
    /// If the model has no selector.
    pub fn switch(&mut self, sparse: bool) -> anyhow::Result<()> {
        if sparse && self.loaded.selector_spec.is_dense() {
            anyhow::bail!(
                "the model was opened without a selector: start with --selector, or with a model from `sparrow sparsify`"
            );
        }
        self.sparse = sparse;
        Ok(())
    }

    /// The selector that answers.
    pub fn selector(&self) -> SelectorSpec {
        if self.sparse { self.loaded.selector_spec.clone() } else { SelectorSpec::dense() }
    }

    /// Answers a message, as text comes. Where nothing is answered the message is taken back.
    ///
    /// # Errors
    /// If the template refuses the conversation, or it does not fit the context; then the conversation can go on without the message.
    /// Also if the text cannot be written, or weights cannot be read.
    pub fn answer(&mut self, message: &str, interrupt: &Interrupt, out: &mut dyn Write) -> anyhow::Result<Answer> {
        self.messages.push(Message::user(message));
        let mut text = String::new();
        let answered = interrupt.stops(|| self.generate(interrupt, out, &mut text));
        let stopped = matches!(&answered, Err(_) | Ok(Answer { finish: Finish::Cancelled, .. }));
        if stopped && text.is_empty() {
            self.messages.pop();
        } else {
            self.messages.push(Message { role: "assistant", content: text });
        }
        answered
    }

    fn generate(&mut self, interrupt: &Interrupt, out: &mut dyn Write, text: &mut String) -> anyhow::Result<Answer> {
        let request = self.dialogue.request(&self.messages, self.request.clone())?;
        let engine = self.engine(interrupt)?;
        let id = engine.submit(request)?;
        loop {
            let events = match engine.step() {
                Err(Error::Cancelled) => {
                    interrupt.cancel().reset();
                    engine.cancel(id)?;
                    continue;
                }
                events => events?,
            };
            for event in events {
                let (piece, end) = match event {
                    Event::Token { text, .. } => (text, None),
                    Event::Finished { text, finish, usage, .. } => (text, Some(Answer { finish, usage })),
                };
                text.push_str(&piece);
                out.write_all(piece.as_bytes()).context("standard output")?;
                out.flush().context("standard output")?;
                if let Some(end) = end {
                    return Ok(end);
                }
            }
        }
    }

    /// The engine that answers. Its cache has what it was asked before, so it computes only what is new to it.
    fn engine(&mut self, interrupt: &Interrupt) -> anyhow::Result<&mut Engine> {
        let engine = &mut self.engines[usize::from(self.sparse)];
        if engine.is_none() {
            let mut loaded = self.loaded.clone();
            if !self.sparse {
                (loaded.selector, loaded.selector_spec) = (Selector::dense(), SelectorSpec::dense());
            }
            let mut new = loaded.engine(self.kv, EngineOptions { kept: 1, ..EngineOptions::default() })?;
            new.session_mut().set_cancel(interrupt.cancel().clone());
            *engine = Some(new);
        }
        Ok(engine.as_mut().expect("it was just made"))
    }
}
