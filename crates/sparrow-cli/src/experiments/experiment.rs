//! One experiment: a setting, a method to run it with, and how to measure that.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Context, bail};
use sparrow::{DType, KvOptions, KvSparsity, SelectorSpec};
use sparrow_kernels::Isa;

use crate::bench::job::{Job, Source};
use crate::model::demo_dir;

/// One row of `experiments.csv`. Its columns are described in [`column`](super::column).
#[derive(Debug, Clone, PartialEq)]
pub struct Experiment {
    pub model: ModelName,
    pub text: Option<PathBuf>,
    pub prompt_tokens: usize,
    pub gen_tokens: usize,
    pub batch: usize,
    pub threads: Option<u16>,
    pub isa: Option<Isa>,
    pub mode: Mode,
    pub sparsity: Option<f64>,
    pub kv_dtype: Option<DType>,
    pub k_sparsity: Option<f64>,
    pub v_sparsity: Option<f64>,
    pub kv_dense_tail: Option<usize>,
    pub kv_sinks: Option<usize>,
    pub selector: SelectorSpec,
    pub runs: usize,
    pub repeat: usize,
    pub eval_tokens: usize,
    pub timeout_s: Option<u64>,
}

impl Default for Experiment {
    fn default() -> Self {
        Experiment {
            model: ModelName::Demo,
            text: None,
            prompt_tokens: 128,
            gen_tokens: 32,
            batch: 1,
            threads: None,
            isa: None,
            mode: MODES[0].1,
            sparsity: None,
            kv_dtype: None,
            k_sparsity: None,
            v_sparsity: None,
            kv_dense_tail: None,
            kv_sinks: None,
            selector: SelectorSpec::dense(),
            runs: 3,
            repeat: 1,
            eval_tokens: 2048,
            timeout_s: None,
        }
    }
}

/// Which weights.
#[derive(Debug, Clone, PartialEq)]
pub enum ModelName {
    /// The bundled model.
    Demo,
    /// Random weights in a known shape.
    Shape(String),
    /// A directory or a hub id.
    Checkpoint(String),
}

impl fmt::Display for ModelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ModelName::Demo => f.write_str("demo"),
            ModelName::Shape(name) => write!(f, "shape:{name}"),
            ModelName::Checkpoint(name) => f.write_str(name),
        }
    }
}

impl FromStr for ModelName {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match (text, text.strip_prefix("shape:")) {
            ("demo", _) => Ok(ModelName::Demo),
            (_, Some(shape)) if sparrow_tools::shapes::names().any(|name| name == shape) => {
                Ok(ModelName::Shape(shape.into()))
            }
            (_, Some(_)) => Err(()),
            _ => Ok(ModelName::Checkpoint(text.into())),
        }
    }
}

/// What weights are stored as.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Mode {
    /// Quantised to; `None`: as they are.
    dtype: Option<DType>,
    /// Zeros are not stored.
    sparse: bool,
}

const MODES: [(&str, Mode); 6] = [
    ("dense", Mode { dtype: None, sparse: false }),
    ("sparse", Mode { dtype: None, sparse: true }),
    ("int8", Mode { dtype: Some(DType::I8), sparse: false }),
    ("sparse-int8", Mode { dtype: Some(DType::I8), sparse: true }),
    ("int4", Mode { dtype: Some(DType::I4G32), sparse: false }),
    ("sparse-int4", Mode { dtype: Some(DType::I4G32), sparse: true }),
];

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = MODES.iter().find_map(|(name, mode)| (mode == self).then_some(*name));
        f.write_str(name.expect("modes come from the table"))
    }
}

impl FromStr for Mode {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        MODES.iter().find_map(|(name, mode)| (*name == text).then_some(*mode)).ok_or(())
    }
}

impl Experiment {
    /// Whether `sparsity` says something: random weights are pruned to it, a checkpoint has the zeros it has.
    fn is_pruned_here(&self) -> bool {
        self.mode.sparse && matches!(self.model, ModelName::Shape(_))
    }

    /// Without what has no meaning beside the other columns, as combinations of a grid's values have it.
    pub fn without_idle_columns(mut self) -> Self {
        if !self.is_pruned_here() {
            self.sparsity = None;
        }
        if self.kv_sparsity().is_none() {
            (self.kv_dense_tail, self.kv_sinks) = (None, None);
        }
        self
    }

    /// Refuses columns that do not go together: the column, and what is wrong.
    pub fn check(&self) -> Result<(), (&'static str, String)> {
        for (column, value) in [("kv_dense_tail", self.kv_dense_tail), ("kv_sinks", self.kv_sinks)] {
            if value.is_some() && self.kv_sparsity().is_none() {
                return Err((
                    column,
                    "must be empty: without k_sparsity or v_sparsity the whole cache is dense".into(),
                ));
            }
        }
        match (self.is_pruned_here(), self.sparsity) {
            (true, None) => Err(("sparsity", format!("is empty: mode {} of random weights needs one", self.mode))),
            (false, Some(_)) => {
                let message = format!(
                    "must be empty: only random weights (model shape:NAME) in a sparse mode are pruned to it, here model is \
                     {} and mode {}",
                    self.model, self.mode
                );
                Err(("sparsity", message))
            }
            _ => Ok(()),
        }
    }

    /// What to measure, for a worker.
    ///
    /// # Errors
    /// If a file is missing, or the row asks for something that this version cannot do.
    pub fn job(&self) -> anyhow::Result<Job> {
        let source = match &self.model {
            ModelName::Shape(name) => Source::Shape { name: name.clone(), zeros: self.sparsity.unwrap_or(0.0) },
            ModelName::Demo => self.directory(demo_dir()?)?,
            ModelName::Checkpoint(name) => self.directory(crate::model::resolve(name)?)?,
        };
        Ok(Job {
            source,
            weights: None,
            dtype: self.mode.dtype.map(|dtype| dtype.to_string()),
            // The head is worth packing only if it was pruned too.
            weights_format: Some(if self.mode.sparse { "auto,*.layers.*=bitmap" } else { "dense" }.to_owned()),
            kv: self.kv().into(),
            selector: self.selector.clone(),
            prompt_tokens: self.prompt_tokens,
            gen_tokens: self.gen_tokens,
            batch: self.batch,
            threads: self.threads,
            isa: self.isa.map(|isa| isa.to_string()),
        })
    }

    fn kv(&self) -> KvOptions {
        let default = KvOptions::default();
        KvOptions {
            dtype: self.kv_dtype,
            sparsity: self.kv_sparsity(),
            dense_tail: self.kv_dense_tail.unwrap_or(default.dense_tail),
            sinks: self.kv_sinks.unwrap_or(default.sinks),
        }
    }

    /// Nothing where both columns are empty: then the cache is dense.
    fn kv_sparsity(&self) -> Option<KvSparsity> {
        let fraction = |column: Option<f64>| column.unwrap_or(0.0) as f32;
        self.k_sparsity.or(self.v_sparsity)?;
        Some(KvSparsity { keys: fraction(self.k_sparsity), values: fraction(self.v_sparsity) })
    }

    fn directory(&self, dir: PathBuf) -> anyhow::Result<Source> {
        let text = match &self.text {
            Some(text) => text.clone(),
            None => demo_dir().map(|demo| demo.join("sample.txt")).context("column text")?,
        };
        if !text.is_file() {
            bail!("column text: {}: no such file", text.display());
        }
        Ok(Source::Directory { dir, text })
    }
}
