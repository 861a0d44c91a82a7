//! The `sparrow` command. One file per subcommand; everything they print to stdout is either text or JSON, the rest
//! (progress, timings, notes) goes to stderr.
#![deny(unsafe_code)]

#[macro_use]
mod output;

mod bench;
mod chat;
mod convert;
mod dialogue;
mod doctor;
mod eval;
mod experiments;
mod generate;
mod html;
mod inspect;
mod last_resort;
mod layerwise;
mod machine;
mod manual;
mod model;
mod pack;
mod plot;
mod profile;
mod prune;
mod quantize;
mod report;
mod sample;
mod sparsify;
mod synth;
#[cfg(test)]
mod tests;
mod tune;

use std::io;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

#[global_allocator]
static ALLOCATOR: sparrow_kernels::ExitWhenFull = sparrow_kernels::ExitWhenFull;

/// Sparse language-model inference on ordinary CPUs: fast, with the cost in quality measured.
#[derive(Parser)]
#[command(name = "sparrow", version, propagate_version = true)]
struct Cli {
    /// Print only results and errors: no notes, timings or progress
    #[arg(long, short, global = true)]
    quiet: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Continue a prompt; the text goes to stdout, timings to stderr
    Generate(generate::Args),
    /// Talk to a model: answers go to stdout, timings to stderr
    Chat(chat::Args),
    /// Measure speed and memory, dense beside sparse (without options: the bundled demo model)
    Bench(bench::Args),
    /// Show where the time of a prompt and of a token goes, by component
    Profile(profile::Args),
    /// Measure many settings from a table, resumably, and compare them in a page of plots
    Experiments(experiments::Args),
    /// Measure quality: perplexity and KL divergence of a selector against the dense model
    Eval(eval::Args),
    /// Calibrate a model on a text and write a directory that runs sparse
    Sparsify(sparsify::Args),
    /// Find the fastest way to run a model here that costs no more quality than you allow, and write it as a directory
    Tune(tune::Args),
    /// Write a pruned model with its matrices as bitmaps and their non-zero elements: smaller
    Pack(pack::Args),
    /// Set weights to zero: magnitude, Wanda or SparseGPT, calibrated on a text
    Prune(prune::Args),
    /// Round weights to 4 or 8 bits: RTN, GPTQ or AWQ, calibrated on a text
    Quantize(quantize::Args),
    /// Write a GGUF file as a Hugging Face directory
    Convert(convert::Args),
    /// Show what a model is: architecture, shapes, sizes, sparsity
    Inspect(inspect::Args),
    /// Show what this machine can do and what will be used
    Doctor(doctor::Args),
    /// Write a random-weight checkpoint of a known shape, for comparing engines
    Synth(synth::Args),
    /// Print a completion script: sparrow completions bash > ~/.local/share/bash-completion/completions/sparrow
    Completions(manual::CompletionsArgs),
    /// Print the manual page: sparrow man > ~/.local/share/man/man1/sparrow.1
    Man,
}

fn main() -> ExitCode {
    let result = last_resort::guard(|| match std::env::args_os().nth(1) {
        // Not a command of the user's: a row of `bench`, in a process of its own.
        Some(name) if name == bench::worker::NAME => bench::worker::run(),
        _ => run(Cli::parse()),
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        // `sparrow … | head` is no error.
        Err(error) if broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("sparrow: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(Cli { quiet, command }: Cli) -> anyhow::Result<()> {
    if quiet {
        output::be_quiet();
    }
    if let Some(cap) = std::env::var_os("SPARROW_ISA") {
        cap.to_string_lossy().parse::<sparrow_kernels::Isa>().map_err(|e| anyhow::anyhow!("SPARROW_ISA: {e}"))?;
    }
    match command {
        Command::Generate(args) => generate::run(args),
        Command::Chat(args) => chat::run(args),
        Command::Bench(args) => bench::run(args),
        Command::Profile(args) => profile::run(args),
        Command::Experiments(args) => experiments::run(args),
        Command::Eval(args) => eval::run(args),
        Command::Sparsify(args) => sparsify::run(args),
        Command::Tune(args) => tune::run(args),
        Command::Pack(args) => pack::run(args),
        Command::Prune(args) => prune::run(args),
        Command::Quantize(args) => quantize::run(args),
        Command::Convert(args) => convert::run(args),
        Command::Inspect(args) => inspect::run(args),
        Command::Doctor(args) => doctor::run(args),
        Command::Synth(args) => synth::run(args),
        Command::Completions(args) => manual::print(&manual::completions(args.shell, Cli::command())),
        Command::Man => manual::print(&manual::page(Cli::command())?),
    }
}

fn broken_pipe(error: &anyhow::Error) -> bool {
    let io = |cause: &'_ (dyn std::error::Error + 'static)| match cause.downcast_ref() {
        Some(sparrow::Error::Io { error, .. }) => Some(error.kind()),
        _ => cause.downcast_ref::<io::Error>().map(io::Error::kind),
    };
    error.chain().any(|cause| io(cause) == Some(io::ErrorKind::BrokenPipe))
}
