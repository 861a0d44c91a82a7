//! `sparrow generate`.

use std::io::{Read, Write};
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use sparrow::generate::{GenerateOptions, StopReason, generate};
use sparrow::sample::SampleOptions;
use sparrow::{Error, Session, SessionOptions};

use crate::model::{KvArg, ModelArgs, SelectorArg, StorageArgs, prepare};
use crate::output::{bytes, percent};

/// Continue a prompt.
#[derive(clap::Args)]
#[command(group(clap::ArgGroup::new("input").required(true)))]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    selector: SelectorArg,
    #[command(flatten)]
    storage: StorageArgs,
    #[command(flatten)]
    kv: KvArg,
    /// Text to continue
    #[arg(long, short, group = "input")]
    prompt: Option<String>,
    /// File with the text to continue; - is standard input
    #[arg(long, short = 'f', group = "input", value_name = "FILE")]
    prompt_file: Option<PathBuf>,
    /// Tokens to generate at most
    #[arg(long, short = 'n', default_value_t = 128)]
    max_new_tokens: usize,
    /// Stop when the output contains this text (repeatable)
    #[arg(long, value_name = "TEXT")]
    stop: Vec<String>,
    /// Divide logits by this before sampling; 0 is greedy
    #[arg(long, default_value_t = 0.0)]
    temperature: f32,
    /// Sample from the K most likely tokens; 0 is all
    #[arg(long, default_value_t = 0, value_name = "K")]
    top_k: usize,
    /// Sample from the most likely tokens that together reach probability P
    #[arg(long, default_value_t = 1.0, value_name = "P")]
    top_p: f32,
    /// Leave out tokens less than P times as likely as the most likely one
    #[arg(long, default_value_t = 0.0, value_name = "P")]
    min_p: f32,
    /// Make tokens that already occurred less likely; 1 is off
    #[arg(long, default_value_t = 1.0, value_name = "X")]
    repetition_penalty: f32,
    /// Same seed, same text
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    let prompt = match (&args.prompt, &args.prompt_file) {
        (Some(text), _) => text.clone(),
        (None, Some(path)) => read_prompt(path)?,
        (None, None) => unreachable!("clap requires one of them"),
    };
    let cpu = args.model.cpu.cpu();
    let (mut model, tokenizer) = args.model.load()?;
    let spec = args.selector.selector.unwrap_or(model.default_selector());
    let selector = prepare(&mut model, &spec, args.storage.dtype, &args.storage.weights_format, &cpu)?;
    let ids = tokenizer.encode(&prompt, true)?;
    let context = model.spec.context_length();
    if ids.len() >= context {
        // One position must be left for the first new token.
        return Err(Error::ContextLength { needed: ids.len() + 1, context }).context("the prompt is too long");
    }
    let capacity = ids.len().saturating_add(args.max_new_tokens).min(context);
    let options = SessionOptions { sequences: 1, capacity, kv: args.kv.options() };
    let mut session = Session::new(Arc::new(model), cpu.clone(), selector, options)?;
    let options = GenerateOptions {
        sample: SampleOptions {
            temperature: args.temperature,
            top_k: args.top_k,
            top_p: args.top_p,
            min_p: args.min_p,
            repetition_penalty: args.repetition_penalty,
            seed: args.seed,
            ..SampleOptions::default()
        },
        // More than fit are never generated, whatever was asked for.
        max_new_tokens: args.max_new_tokens.min(context + 1),
        stop: args.stop,
    };

    let mut out = std::io::stdout().lock();
    let mut failed = None;
    let emit = |text: &str| {
        let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
        written.map_err(|e| {
            failed = Some(std::io::Error::from(e.kind()));
            Error::Io { path: "standard output".into(), error: e }
        })
    };
    let result = generate(&mut session, 0, &tokenizer, &ids, &options, emit);
    if let Some(error) = failed {
        return Err(error).context("standard output");
    }
    let generated = result?;
    writeln!(out)?;
    eprintln!(
        "prompt {} tokens in {:.3} s ({:.1} tok/s), generated {} tokens ({:.1} tok/s after the first); {}",
        generated.prompt_tokens,
        generated.time_to_first_token.as_secs_f64(),
        generated.prefill_tokens_per_second(),
        generated.ids.len(),
        generated.decode_tokens_per_second(),
        match &generated.reason {
            StopReason::EndOfSequence => "stopped at end of sequence".into(),
            StopReason::StopString(stop) => format!("stopped at {stop:?}"),
            StopReason::MaxNewTokens => format!("stopped at --max-new-tokens {}", args.max_new_tokens),
            StopReason::ContextFull => format!("stopped: the context of {capacity} tokens is full"),
        }
    );
    if session.stats().store_bytes > 0 {
        let read = session.stats().store_bytes as f64 / session.stats().steps as f64;
        eprintln!("weights {}: {} of neurons read per step", args.model.weights, bytes(read as u64));
    }
    eprintln!(
        "selector {spec}, weights in {}: {} active; {} threads, {}",
        session.model().weights.dtype(),
        percent(session.stats().active_fraction()),
        cpu.compute.threads(),
        cpu.compute.isa()
    );
    Ok(())
}

fn read_prompt(path: &std::path::Path) -> anyhow::Result<String> {
    if path.as_os_str() == "-" {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).context("standard input")?;
        return Ok(text);
    }
    std::fs::read_to_string(path).with_context(|| path.display().to_string())
}
