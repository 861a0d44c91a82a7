//! What to run: model or shape, selectors, sizes. Shared by `bench` and `profile`.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use sparrow::{DType, Model, Placement, SelectorSpec, WeightsFormat};

use super::job::{Job, Source};
use crate::model::{CpuArgs, KvArg, demo_dir, fraction, resolve, sparse_default};

/// What to run.
#[derive(clap::Args)]
#[command(next_help_heading = "Workload")]
pub struct WorkloadArgs {
    /// Hugging Face model directory, GGUF file, or hub id org/name[/FILE.gguf][@revision] [default: the bundled demo model]
    #[arg(long, short, value_name = "DIR|ID", conflicts_with = "shape", help_heading = "Model")]
    model: Option<String>,
    /// Random weights in memory, in the shape of a known model: speed only
    #[arg(long, help_heading = "Model", value_parser = clap::builder::PossibleValuesParser::new(sparrow_tools::shapes::names()))]
    pub shape: Option<String>,
    /// One row per element type of the weights [default: as they are stored; bf16 with --shape]
    ///
    /// int8, int4, int4-zero, int4-g128 or int4-g128-zero to quantise a model, also f32, f16 or bf16 with --shape.
    #[arg(long, value_delimiter = ',', help_heading = "Storage")]
    dtype: Vec<DType>,
    #[arg(
        long,
        short,
        help_heading = "Sparsity",
        help = format!("One row per selector: {} [default: dense, and what the model can do sparse]", SelectorSpec::usage())
    )]
    selector: Vec<SelectorSpec>,
    /// One row per place of the weights (repeatable): ram, mmap or cache:FRACTION[,exact|window=N|lru][,prefer=G][,mmap] [default: mmap]
    ///
    /// As in generate; with --shape weights are in memory, and the cache copies them.
    #[arg(long, value_name = "PLACE", help_heading = "Storage")]
    weights: Vec<Placement>,
    /// One row per format of the matrices (repeatable): [PATTERN=]auto|dense|bitmap[,…], as in generate [default: auto]
    #[arg(long, value_name = "FORMAT", help_heading = "Storage")]
    weights_format: Vec<WeightsFormat>,
    /// With --shape: make this fraction of the weights of layers and head 0, anywhere, as if they were pruned
    #[arg(long, default_value_t = 0.0, value_name = "FRACTION", requires = "shape", help_heading = "Sparsity", value_parser = fraction)]
    zeros: f64,
    /// Add a row whose active neurons are chosen at random: this fraction of them
    #[arg(long, value_name = "FRACTION", help_heading = "Sparsity")]
    active: Option<f32>,
    /// With --active: fraction of a step's active neurons that stay active in the next
    #[arg(long, default_value_t = 0.8, value_name = "FRACTION", requires = "active", help_heading = "Sparsity")]
    overlap: f32,
    /// Tokens of the prompt
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..))]
    pub prompt_tokens: u32,
    /// Tokens generated after it, per sequence [default: 128; 32 with --shape]
    #[arg(long, value_parser = clap::value_parser!(u32).range(2..))]
    gen_tokens: Option<u32>,
    /// Sequences side by side
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub batch: u32,
    /// UTF-8 text for prompts and for the quality of sparse rows [default: the demo model's sample.txt]
    #[arg(long, value_name = "FILE", conflicts_with = "shape")]
    text: Option<PathBuf>,
    /// Tokens of the text that quality is measured on; 0 leaves it out
    #[arg(long, value_name = "N", default_value_t = 8192, conflicts_with = "shape")]
    pub quality_tokens: u32,
    #[command(flatten)]
    kv: KvArg,
    #[command(flatten)]
    pub cpu: CpuArgs,
}

impl WorkloadArgs {
    /// One job per selector.
    pub fn jobs(&self) -> anyhow::Result<Vec<Job>> {
        let (source, default_selectors) = match &self.shape {
            Some(shape) => (Source::Shape { name: shape.clone(), zeros: self.zeros }, vec![SelectorSpec::dense()]),
            None => {
                let dir = match &self.model {
                    Some(model) => resolve(model)?,
                    None => demo_dir()?,
                };
                let text = match &self.text {
                    Some(path) => path.clone(),
                    None => demo_dir().map(|demo| demo.join("sample.txt")).context("pass --text FILE")?,
                };
                if !text.is_file() {
                    bail!("{}: no such file (--text)", text.display());
                }
                let selectors = real_selectors(&dir)?;
                (Source::Directory { dir, text }, selectors)
            }
        };
        let mut selectors = if self.selector.is_empty() { default_selectors } else { self.selector.clone() };
        selectors.extend(self.active.map(|active| SelectorSpec::forced(active, self.overlap)));
        let mut dtypes: Vec<Option<DType>> = self.dtype.iter().copied().map(Some).collect();
        if dtypes.is_empty() {
            dtypes.push(self.shape.is_some().then_some(DType::BF16));
        }
        let placements = if self.weights.is_empty() { vec![Placement::Mapped] } else { self.weights.clone() };
        let mut formats: Vec<Option<&WeightsFormat>> = self.weights_format.iter().map(Some).collect();
        if formats.is_empty() {
            formats.push(None);
        }
        let job =
            |placement: Placement, dtype: Option<DType>, format: Option<&WeightsFormat>, selector: SelectorSpec| Job {
                source: source.clone(),
                weights: (!self.weights.is_empty()).then(|| placement.to_string()),
                dtype: dtype.map(|dtype| dtype.to_string()),
                weights_format: format.map(ToString::to_string),
                kv: self.kv.options().into(),
                selector,
                prompt_tokens: self.prompt_tokens as usize,
                gen_tokens: self.gen_tokens.unwrap_or(if self.shape.is_some() { 32 } else { 128 }) as usize,
                batch: self.batch as usize,
                threads: self.cpu.threads,
                isa: None,
            };
        let mut jobs = Vec::new();
        for dtype in dtypes {
            for selector in &selectors {
                for &format in &formats {
                    jobs.extend(placements.iter().map(|&placement| job(placement, dtype, format, selector.clone())));
                }
            }
        }
        Ok(jobs)
    }
}

/// Dense, and what the model was sparsified for, or the gate selector where it is lossless.
fn real_selectors(dir: &Path) -> anyhow::Result<Vec<SelectorSpec>> {
    let stored = Model::load(dir, Placement::Mapped)?.default_selector();
    let sparse = if stored.is_dense() { sparse_default(dir)? } else { Some(stored) };
    Ok([SelectorSpec::dense()].into_iter().chain(sparse).collect())
}
