//! `sparrow generate`.

use std::collections::BTreeMap;
use std::io::{IsTerminal, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use sparrow::engine::{EngineOptions, Event, Finish, Request, RequestId, Usage};
use sparrow::internals::checkpoint::ModelFiles;
use sparrow::internals::text::sample::SampleOptions;
use sparrow::{Error, Loaded};

use crate::dialogue::{Dialogue, Message, TemplateArg};
use crate::model::{KvArg, ModelArgs, SelectorArg, StorageArgs, open};
use crate::output::{bytes, percent, progress};
use crate::sample::SampleArgs;

/// Continue a prompt.
#[derive(clap::Args)]
#[command(group(clap::ArgGroup::new("input").required(true).multiple(true)))]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    selector: SelectorArg,
    #[command(flatten)]
    storage: StorageArgs,
    #[command(flatten)]
    kv: KvArg,
    /// Text to continue (repeatable: several run together, their texts are printed in order)
    #[arg(long, short, group = "input", help_heading = "Text")]
    prompt: Vec<String>,
    /// File with the text to continue; - is standard input
    #[arg(long, short = 'f', group = "input", value_name = "FILE", conflicts_with = "prompt", help_heading = "Text")]
    prompt_file: Option<PathBuf>,
    /// Take each prompt as a message, and generate the model's answer to it; --chat-template does that too
    #[arg(long, help_heading = "Text")]
    chat: bool,
    #[command(flatten)]
    template: TemplateArg,
    /// Tokens to generate at most
    #[arg(long, short = 'n', default_value_t = 128, help_heading = "Text")]
    max_new_tokens: usize,
    /// Stop when the output contains this text (repeatable)
    #[arg(long, value_name = "TEXT", help_heading = "Text")]
    stop: Vec<String>,
    #[command(flatten)]
    sample: SampleArgs,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    let prompts = match &args.prompt_file {
        Some(path) => vec![read_prompt(path)?],
        None => args.prompt.clone(),
    };
    let loaded = open(args.storage.of(args.model.load()?.selector(args.selector.selector.clone())))?;
    let tokenizer = loaded.tokenizer()?;
    let dialogue = (args.chat || args.template.chat_template.is_some()).then(|| {
        let files = ModelFiles::open(&args.model.dir()?)?;
        Dialogue::new(&loaded, &files, args.template.chat_template.as_deref())
    });
    let dialogue = dialogue.transpose()?;
    let options = EngineOptions { queue: prompts.len(), ..EngineOptions::default() };
    let mut engine = loaded.engine(args.kv.options(), options)?;
    let mut texts = Texts::default();
    for (i, prompt) in prompts.iter().enumerate() {
        let request = Request {
            sample: args.sample.options(SampleOptions::default()),
            max_new_tokens: args.max_new_tokens,
            stop: args.stop.clone(),
            ..Request::default()
        };
        let request = match &dialogue {
            Some(dialogue) => dialogue.request(&[Message::user(prompt)], request)?,
            None => Request { prompt: tokenizer.encode(prompt, true)?, ..request },
        };
        let which = || if prompts.len() > 1 { format!("prompt {}", i + 1) } else { "the prompt".to_owned() };
        let submitted = engine.submit(request).map_err(|error| match error {
            too_long @ Error::ContextLength { .. } => {
                anyhow::Error::new(too_long).context(format!("{} is too long", which()))
            }
            other => other.into(),
        });
        texts.add(submitted?);
    }
    let bar = progress("generating", (prompts.len() * args.max_new_tokens) as u64, false);
    // Where the text is on the terminal, it shows how far it is.
    let shows_text = std::io::stdout().is_terminal();
    for event in engine.events() {
        bar.inc(1);
        if shows_text && !bar.is_finished() {
            bar.finish_and_clear();
        }
        texts.take(event?).context("standard output")?;
    }
    bar.finish_and_clear();
    for (i, (finish, usage)) in texts.finished().enumerate() {
        let which = if prompts.len() > 1 { format!("{}: ", i + 1) } else { String::new() };
        report(&which, finish, usage, &args, &loaded);
    }
    let stats = engine.session().stats();
    if stats.store_bytes > 0 {
        let read = stats.store_bytes as f64 / stats.steps as f64;
        note!("weights {}: {} of neurons read per step", args.model.weights, bytes(read as u64));
    }
    note!(
        "selector {}, weights in {}: {} active; {} threads, {}",
        loaded.selector_spec,
        loaded.model.weights.dtypes(),
        percent(stats.active_fraction()),
        loaded.cpu.compute.threads(),
        loaded.cpu.compute.isa()
    );
    Ok(())
}

fn report(which: &str, finish: &Finish, usage: &Usage, args: &Args, loaded: &Loaded) {
    note!(
        "{which}prompt {} tokens in {:.3} s ({:.1} tok/s), generated {} tokens ({:.1} tok/s after the first); {}",
        usage.prompt_tokens,
        usage.time_to_first_token.unwrap_or_default().as_secs_f64(),
        usage.prefill_tokens_per_second(),
        usage.new_tokens,
        usage.decode_tokens_per_second(),
        ending(finish, args.max_new_tokens, loaded.model.spec.context_length())
    );
}

/// Why a text ended.
pub fn ending(finish: &Finish, max_new_tokens: usize, context: usize) -> String {
    match finish {
        Finish::EndOfSequence => "stopped at end of sequence".into(),
        Finish::StopString(stop) => format!("stopped at {stop:?}"),
        Finish::MaxNewTokens => format!("stopped at --max-new-tokens {max_new_tokens}"),
        Finish::ContextFull => format!("stopped: the context of {context} tokens is full"),
        Finish::Cancelled => "cancelled".into(),
    }
}

/// Texts of several requests, printed in the order of the requests: the first that has not ended as it comes.
#[derive(Default)]
struct Texts {
    /// What is not printed yet, and how it ended.
    requests: BTreeMap<RequestId, (String, Option<(Finish, Usage)>)>,
}

impl Texts {
    fn add(&mut self, request: RequestId) {
        self.requests.insert(request, Default::default());
    }

    /// Takes what happened, and prints what can be.
    fn take(&mut self, event: Event) -> std::io::Result<()> {
        let (request, text, end) = match event {
            Event::Token { request, text, .. } => (request, text, None),
            Event::Finished { request, text, finish, usage } => (request, text, Some((finish, usage))),
        };
        let first_open = self.requests.iter().find(|(_, (_, end))| end.is_none()).map(|(id, _)| *id);
        let (held, ended) = self.requests.get_mut(&request).expect("it was added");
        held.push_str(&text);
        *ended = end;
        if first_open != Some(request) {
            return Ok(());
        }
        // Those after it that have ended already come with it.
        let mut out = std::io::stdout().lock();
        for (held, ended) in self.requests.range_mut(request..).map(|(_, state)| state) {
            out.write_all(std::mem::take(held).as_bytes())?;
            if ended.is_none() {
                break;
            }
            writeln!(out)?;
        }
        out.flush()
    }

    /// How each ended, in order.
    fn finished(&self) -> impl Iterator<Item = &(Finish, Usage)> {
        self.requests.values().filter_map(|(_, end)| end.as_ref())
    }
}

fn read_prompt(path: &Path) -> anyhow::Result<String> {
    if path.as_os_str() == "-" {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).context("standard input")?;
        return Ok(text);
    }
    std::fs::read_to_string(path).with_context(|| path.display().to_string())
}
