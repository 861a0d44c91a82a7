//! The columns of `experiments.csv`: the one table that sheets, grids, results and the help are made from.

use std::fmt::Write;
use std::ops::RangeInclusive;
use std::str::FromStr;

use sparrow::SelectorSpec;

use super::experiment::Experiment;
use crate::model::kv_dtype;

/// What a column is to a comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// What is to be done: rows that differ here are not compared.
    Setting,
    /// How it is done: rows that differ here are.
    Method,
    /// How it is measured.
    Measurement,
}

/// A column of `experiments.csv`.
pub struct Column {
    pub name: &'static str,
    /// What a cell holds; `{selectors}` stands for the list of them.
    pub expects: &'static str,
    pub role: Role,
    /// Puts the text of a cell, not empty, into a row; `None` if it is not what is expected.
    pub read: fn(&mut Experiment, &str) -> Option<()>,
    /// The text of a row's cell; empty for what is left to the machine or the model.
    pub write: fn(&Experiment) -> String,
}

impl Column {
    /// What a cell holds; the words after "expected" in an error.
    pub fn expected(&self) -> String {
        self.expects.replace("{selectors}", &SelectorSpec::names())
    }
}

/// Settings first and methods after them, so that the rows of a grid that are to be compared follow each other.
#[rustfmt::skip]
pub const COLUMNS: [Column; 19] = [
    Column {
        name: "model", role: Role::Setting,
        expects: "a model directory, a hub id, demo, or shape:NAME (random weights) with a NAME that `bench --shape` knows",
        read: |e, text| parse(text).map(|v| e.model = v), write: |e| e.model.to_string(),
    },
    Column {
        name: "text", role: Role::Setting,
        expects: "a UTF-8 file for prompts and quality; empty: the demo model's sample.txt",
        read: |e, text| parse(text).map(|v| e.text = Some(v)), write: |e| e.text.as_ref().map_or(String::new(), |p| p.display().to_string()),
    },
    Column {
        name: "prompt_tokens", role: Role::Setting,
        expects: "a whole number from 1 to 16777216: tokens of each sequence's prompt",
        read: |e, text| within(text, 1..=1 << 24).map(|v| e.prompt_tokens = v), write: |e| e.prompt_tokens.to_string(),
    },
    Column {
        name: "gen_tokens", role: Role::Setting,
        expects: "a whole number from 2 to 16777216: tokens generated after each prompt",
        read: |e, text| within(text, 2..=1 << 24).map(|v| e.gen_tokens = v), write: |e| e.gen_tokens.to_string(),
    },
    Column {
        name: "batch", role: Role::Setting,
        expects: "a whole number from 1 to 1024: sequences side by side",
        read: |e, text| within(text, 1..=1024).map(|v| e.batch = v), write: |e| e.batch.to_string(),
    },
    Column {
        name: "threads", role: Role::Setting,
        expects: "a whole number from 1 to 1024; empty: as many as this process may use",
        read: |e, text| within(text, 1..=1024).map(|v| e.threads = Some(v)), write: |e| optional(&e.threads),
    },
    Column {
        name: "isa", role: Role::Setting,
        expects: "scalar, avx2, avx512, avx512bf16 or amx: the instruction set tier; empty: the best",
        read: |e, text| parse(text).map(|v| e.isa = Some(v)), write: |e| optional(&e.isa),
    },
    Column {
        name: "mode", role: Role::Method,
        expects: "dense, sparse, int8, sparse-int8, int4 or sparse-int4: what weights are stored as",
        read: |e, text| parse(text).map(|v| e.mode = v), write: |e| e.mode.to_string(),
    },
    Column {
        name: "sparsity", role: Role::Method,
        expects: "a fraction from 0 to below 1 that random weights of sparse modes are pruned to; empty otherwise",
        read: |e, text| fraction(text).map(|v| e.sparsity = Some(v)), write: |e| optional(&e.sparsity),
    },
    Column {
        name: "kv_dtype", role: Role::Method,
        expects: "f32, f16, bf16 or int8: element type of cached keys and values; empty: the weights' own, bf16 if quantised",
        read: |e, text| kv_dtype(text).ok().map(|v| e.kv_dtype = Some(v)), write: |e| optional(&e.kv_dtype),
    },
    Column {
        name: "k_sparsity", role: Role::Method,
        expects: "a fraction from 0 to below 1 of the cached keys to prune; empty: none",
        read: |e, text| fraction(text).map(|v| e.k_sparsity = Some(v)), write: |e| optional(&e.k_sparsity),
    },
    Column {
        name: "v_sparsity", role: Role::Method,
        expects: "a fraction from 0 to below 1 of the cached values to prune; empty: none",
        read: |e, text| fraction(text).map(|v| e.v_sparsity = Some(v)), write: |e| optional(&e.v_sparsity),
    },
    Column {
        name: "kv_dense_tail", role: Role::Method,
        expects: "a whole number up to 16777216: last tokens whose keys and values stay dense where others are pruned; empty: 64",
        read: |e, text| within(text, 0..=1 << 24).map(|v| e.kv_dense_tail = Some(v)), write: |e| optional(&e.kv_dense_tail),
    },
    Column {
        name: "kv_sinks", role: Role::Method,
        expects: "a whole number up to 16777216: first tokens whose keys and values stay dense where others are pruned; empty: none",
        read: |e, text| within(text, 0..=1 << 24).map(|v| e.kv_sinks = Some(v)), write: |e| optional(&e.kv_sinks),
    },
    Column {
        name: "selector", role: Role::Method,
        expects: "{selectors}, or forced:active=F,overlap=P, as in `bench --selector`",
        read: |e, text| parse(text).map(|v| e.selector = v), write: |e| e.selector.to_string(),
    },
    Column {
        name: "runs", role: Role::Measurement,
        expects: "a whole number from 1 to 1000: runs that medians are taken of, after one to warm up",
        read: |e, text| within(text, 1..=1000).map(|v| e.runs = v), write: |e| e.runs.to_string(),
    },
    Column {
        name: "repeat", role: Role::Measurement,
        expects: "a whole number from 1 to 1000: which time this is measured; the rows of one setting take turns, all of 1 before any of 2",
        read: |e, text| within(text, 1..=1000).map(|v| e.repeat = v), write: |e| e.repeat.to_string(),
    },
    Column {
        name: "eval_tokens", role: Role::Measurement,
        expects: "a whole number up to 16777216: tokens of the text that quality is measured on; 0: not measured",
        read: |e, text| within(text, 0..=1 << 24).map(|v| e.eval_tokens = v), write: |e| e.eval_tokens.to_string(),
    },
    Column {
        name: "timeout_s", role: Role::Measurement,
        expects: "a whole number of seconds from 1 to 1000000 after which a row has failed; empty: none",
        read: |e, text| within(text, 1..=1_000_000).map(|v| e.timeout_s = Some(v)), write: |e| optional(&e.timeout_s),
    },
];

impl Column {
    /// Puts the text of a cell into a row; an empty one leaves the default.
    ///
    /// # Errors
    /// Says what was expected and what was found.
    pub fn put(&self, experiment: &mut Experiment, text: &str) -> Result<(), String> {
        match text.trim() {
            "" => Ok(()),
            text => {
                (self.read)(experiment, text).ok_or_else(|| format!("expected {}, found {text:?}", self.expected()))
            }
        }
    }
}

/// The names of all columns, for messages.
pub fn names() -> String {
    COLUMNS.each_ref().map(|column| column.name).join(", ")
}

/// The columns as a help text.
pub fn help() -> String {
    let mut text = "Columns of experiments.csv, and keys of a grid:\n".to_owned();
    let default = Experiment::default();
    for column in &COLUMNS {
        let default = (column.write)(&default);
        let default = if default.is_empty() { String::new() } else { format!(" [default: {default}]") };
        let _ = writeln!(text, "  {:<14} {}{default}", column.name, column.expected());
    }
    text
}

fn parse<T: FromStr>(text: &str) -> Option<T> {
    text.parse().ok()
}

fn within<T: FromStr + PartialOrd>(text: &str, range: RangeInclusive<T>) -> Option<T> {
    parse(text).filter(|value| range.contains(value))
}

fn fraction(text: &str) -> Option<f64> {
    parse(text).filter(|value| (0.0..1.0).contains(value))
}

fn optional(value: &Option<impl ToString>) -> String {
    value.as_ref().map_or(String::new(), ToString::to_string)
}
