//! Lines from a person or from a pipe.

use std::io::{BufRead, IsTerminal, StdinLock};
use std::path::PathBuf;

use anyhow::Context;
use rustyline::error::ReadlineError;
use rustyline::history::DefaultHistory;
use rustyline::{Behavior, Config, Editor};

/// Where lines come from.
pub enum Input {
    /// A terminal, with editing and a history.
    Terminal { editor: Box<Editor<(), DefaultHistory>>, history: Option<PathBuf> },
    /// Anything else.
    Pipe(StdinLock<'static>),
}

impl Input {
    /// Standard input.
    pub fn open() -> anyhow::Result<Self> {
        if !std::io::stdin().is_terminal() {
            return Ok(Input::Pipe(std::io::stdin().lock()));
        }
        // The prompt is no part of what is redirected.
        let behavior = if std::io::stdout().is_terminal() { Behavior::Stdio } else { Behavior::PreferTerm };
        let config = Config::builder().behavior(behavior).auto_add_history(true).max_history_size(1000)?.build();
        let mut editor = Box::new(Editor::with_config(config).context("the terminal")?);
        let history = history_file();
        if let Some(file) = &history {
            // The first chat has none.
            editor.load_history(file).ok();
        }
        Ok(Input::Terminal { editor, history })
    }

    /// Whether a person types.
    pub fn is_terminal(&self) -> bool {
        matches!(self, Input::Terminal { .. })
    }

    /// The next line; none at the end.
    pub fn line(&mut self) -> anyhow::Result<Option<String>> {
        match self {
            Input::Pipe(input) => {
                let mut line = String::new();
                let read = input.read_line(&mut line).context("standard input")?;
                Ok((read > 0).then(|| line.trim_end_matches(['\n', '\r']).to_owned()))
            }
            Input::Terminal { editor, history } => {
                let mut interrupted = false;
                loop {
                    match editor.readline("> ") {
                        Ok(line) => {
                            if let Some(file) = history {
                                // A history that cannot be written is no reason to stop talking.
                                editor.append_history(file).ok();
                            }
                            return Ok(Some(line));
                        }
                        Err(ReadlineError::Interrupted) if !interrupted => {
                            note!("Ctrl-C again or Ctrl-D leaves");
                            interrupted = true;
                        }
                        Err(ReadlineError::Interrupted | ReadlineError::Eof) => return Ok(None),
                        Err(error) => return Err(error).context("the terminal"),
                    }
                }
            }
        }
    }
}

/// Where the lines of earlier chats are, if the system has a place for them.
fn history_file() -> Option<PathBuf> {
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|dir| dir.is_absolute());
    let state = absolute("XDG_STATE_HOME").or_else(|| Some(absolute("HOME")?.join(".local/state")))?.join("sparrow");
    std::fs::create_dir_all(&state).ok()?;
    Some(state.join("chat_history"))
}
