//! `sparrow chat`.

mod command;
mod input;
mod interrupt;
mod talk;

use std::io::Write;

use sparrow::Error;
use sparrow::engine::{Request, Usage};
use sparrow::internals::checkpoint::ModelFiles;
use sparrow::internals::checkpoint::config::read_suggested_sampling;
use sparrow::internals::text::sample::SampleOptions;

use crate::dialogue::{Dialogue, TemplateArg};
use crate::generate::ending;
use crate::model::{KvArg, ModelArgs, SelectorArg, StorageArgs, open, sparse_default};
use crate::output::{percent, reply};
use crate::sample::SampleArgs;
use command::{Command, HELP};
use input::Input;
use interrupt::Interrupt;
use talk::{Answer, Talk};

/// Talk to a model.
///
/// Every line is a message; answers go to stdout, timings and notes to stderr. Lines that begin with a slash are commands: /help
/// lists them. Ctrl-C stops an answer. Where the model's generation_config.json says how it is to be sampled, that is the default.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    selector: SelectorArg,
    #[command(flatten)]
    storage: StorageArgs,
    #[command(flatten)]
    kv: KvArg,
    /// What the model is told before the first message
    #[arg(long, value_name = "TEXT", help_heading = "Text")]
    system: Option<String>,
    #[command(flatten)]
    template: TemplateArg,
    /// Tokens of an answer at most
    #[arg(long, short = 'n', default_value_t = 2048, help_heading = "Text")]
    max_new_tokens: usize,
    /// Stop an answer when it contains this text (repeatable)
    #[arg(long, value_name = "TEXT", help_heading = "Text")]
    stop: Vec<String>,
    #[command(flatten)]
    sample: SampleArgs,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    let dir = args.model.dir()?;
    let files = ModelFiles::open(&dir)?;
    let asked = args.selector.selector.clone();
    // A selector that loses nothing is there to be switched to, but not before it is asked for.
    let lossless = if asked.is_none() { sparse_default(&dir)? } else { None };
    let begin_dense = lossless.is_some();
    let loaded = open(args.storage.of(args.model.load()?.selector(asked.or(lossless))))?;
    let dialogue = Dialogue::new(&loaded, &files, args.template.chat_template.as_deref())?;
    let request = Request {
        sample: args.sample.options(suggested(&files)?),
        max_new_tokens: args.max_new_tokens,
        stop: args.stop,
        ..Request::default()
    };
    let context = loaded.model.spec.context_length();
    let mut talk = Talk::new(loaded, args.kv.options(), dialogue, request, args.system)?;
    if begin_dense {
        talk.switch(false)?;
    }
    let mut input = Input::open()?;
    let interrupt = Interrupt::install(input.is_terminal())?;
    if input.is_terminal() {
        note!("/help lists the commands");
    }
    while let Some(line) = input.line()? {
        match Command::parse(&line) {
            Ok(None) if line.trim().is_empty() => {}
            Ok(None) => {
                let mut out = std::io::stdout().lock();
                let answered = talk.answer(&line, &interrupt, &mut out);
                let answer = match answered {
                    Ok(answer) => answer,
                    Err(error) => {
                        go_on(error)?;
                        continue;
                    }
                };
                writeln!(out)?;
                note!("{}", report(&talk, &answer, args.max_new_tokens, context));
            }
            Ok(Some(Command::Exit)) => break,
            Ok(Some(command)) => {
                if let Err(error) = obey(command, &mut talk) {
                    reply(format_args!("{error:#}"));
                }
            }
            Err(message) => reply(message),
        }
    }
    Ok(())
}

/// How the model's authors would have it sampled.
fn suggested(files: &ModelFiles) -> anyhow::Result<SampleOptions> {
    let (suggested, greedy) = (read_suggested_sampling(files)?, SampleOptions::default());
    Ok(SampleOptions {
        temperature: suggested.temperature.unwrap_or(greedy.temperature),
        top_k: suggested.top_k.unwrap_or(greedy.top_k),
        top_p: suggested.top_p.unwrap_or(greedy.top_p),
        min_p: suggested.min_p.unwrap_or(greedy.min_p),
        repetition_penalty: suggested.repetition_penalty.unwrap_or(greedy.repetition_penalty),
        ..greedy
    })
}

fn obey(command: Command, talk: &mut Talk) -> anyhow::Result<()> {
    match command {
        Command::Help => reply(HELP),
        Command::Reset => {
            talk.reset();
            note!("the conversation begins anew");
        }
        Command::Save(path) => {
            talk.save(&path)?;
            note!("saved to {}", path.display());
        }
        Command::Dense | Command::Sparse => {
            talk.switch(command == Command::Sparse)?;
            note!("selector {} from here on", talk.selector());
        }
        Command::Exit => {}
    }
    Ok(())
}

/// Says why a message was not answered, where the conversation can go on without it.
///
/// # Errors
/// Where it cannot.
fn go_on(error: anyhow::Error) -> anyhow::Result<()> {
    match error.downcast_ref() {
        Some(Error::ContextLength { needed, context }) => {
            reply(format_args!(
                "the message was not answered: with it the conversation has {} tokens, and the context of {context} is full; \
                 /reset begins anew",
                needed - 1
            ));
            Ok(())
        }
        Some(Error::Template { .. }) => {
            reply(format_args!("the message was not answered: {error}"));
            Ok(())
        }
        _ => Err(error),
    }
}

/// What an answer took.
fn report(talk: &Talk, answer: &Answer, max_new_tokens: usize, context: usize) -> String {
    let Usage { prompt_tokens, cached_tokens, new_tokens, active_fraction, .. } = answer.usage;
    format!(
        "[{}: {} of {prompt_tokens} prompt tokens computed at {:.1} tok/s, {new_tokens} generated at {:.1} tok/s, {} active; {}]",
        talk.selector(),
        prompt_tokens - cached_tokens,
        answer.usage.prefill_tokens_per_second(),
        answer.usage.decode_tokens_per_second(),
        percent(active_fraction),
        ending(&answer.finish, max_new_tokens, context),
    )
}
