//! The `sparrow` command as a user runs it, a module for each subcommand.

mod bench;
mod chat;
mod command;
mod doctor;
mod eval;
mod every_command;
mod experiments;
mod generate;
mod hostile;
mod hub;
mod inspect;
mod pack;
mod prune;
mod quantize;
mod sparsify;
mod synth;
#[cfg(target_os = "linux")]
mod terminal;
mod tune;
