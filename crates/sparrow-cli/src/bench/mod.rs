//! `sparrow bench`: each row runs in a process of its own (so that its memory is its own), the rows taking turns run by
//! run (so that a machine whose speed drifts treats them alike).

mod report;
pub mod worker;

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use sparrow::sparsity::is_relu_family;
use sparrow::{DType, SelectorSpec};
use sparrow_kernels::{Compute, read_bandwidth};

use self::report::{Machine, ModelReport, Report, Row};
use self::worker::{Job, Source, Worker};
use crate::machine;
use crate::model::{CpuArgs, demo_dir};
use crate::output::{self, Format};

/// Measure speed and memory, dense beside sparse.
#[derive(clap::Args)]
pub struct Args {
    /// Hugging Face model directory, or hub id org/name[@revision] [default: the bundled demo model]
    #[arg(long, short, value_name = "DIR|ID", conflicts_with = "shape")]
    model: Option<String>,
    /// Random weights in memory, in the shape of a known model: speed only
    #[arg(long, value_parser = clap::builder::PossibleValuesParser::new(sparrow::shapes::names()))]
    shape: Option<String>,
    /// Element type of the random weights: f32, f16 or bf16
    #[arg(long, default_value = "bf16", requires = "shape")]
    dtype: DType,
    /// One row per selector: dense, gate[:RULE], lowrank[:RULE] [default: dense, and what the model can do sparse]
    #[arg(long, short)]
    selector: Vec<SelectorSpec>,
    /// Add a row whose active neurons are chosen at random: this fraction of them
    #[arg(long, value_name = "FRACTION")]
    active: Option<f32>,
    /// With --active: fraction of a step's active neurons that stay active in the next
    #[arg(long, default_value_t = 0.8, value_name = "FRACTION", requires = "active")]
    overlap: f32,
    /// Tokens of the prompt
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..))]
    prompt_tokens: u32,
    /// Tokens generated after it, per sequence [default: 128; 32 with --shape]
    #[arg(long, value_parser = clap::value_parser!(u32).range(2..))]
    gen_tokens: Option<u32>,
    /// Sequences side by side
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024))]
    batch: u32,
    /// Runs of each row [default: 10; 3 with --shape]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    runs: Option<u32>,
    /// UTF-8 text for prompts and for the quality of sparse rows [default: the demo model's sample.txt]
    #[arg(long, value_name = "FILE", conflicts_with = "shape")]
    text: Option<PathBuf>,
    #[command(flatten)]
    cpu: CpuArgs,
    /// Form of the output
    #[arg(long, value_enum, default_value_t)]
    format: Format,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    let synthetic = args.shape.is_some();
    let runs = args.runs.unwrap_or(if synthetic { 3 } else { 10 }) as usize;
    let jobs = jobs(&args)?;

    let machine = {
        let compute = Compute::new(args.cpu.threads.map(usize::from));
        let bar = output::progress("measuring bandwidth", 1, false);
        let read_gb_s = read_bandwidth(&compute);
        bar.finish_and_clear();
        Machine { cpu: machine::cpu_name(), isa: compute.isa().to_string(), threads: compute.threads(), read_gb_s }
    };

    let bar = output::progress("running", (jobs.len() * (runs + 1)) as u64, false);
    let (mut rows, model, interleaved) = if fits_together(&jobs)? {
        let mut workers = Vec::new();
        for job in &jobs {
            bar.set_message(format!("loading for {}", job.selector));
            workers.push(Worker::start(job)?);
        }
        let mut rows: Vec<Row> = jobs.iter().map(Row::new).collect();
        for worker in &mut workers {
            bar.set_message("warming up");
            worker.run()?;
            bar.inc(1);
        }
        for _ in 0..runs {
            for (worker, row) in workers.iter_mut().zip(&mut rows) {
                bar.set_message(row.name.clone());
                row.add(worker.run()?);
                bar.inc(1);
            }
        }
        let model = ModelReport::new(&workers[0].model, synthetic);
        for (worker, row) in workers.iter_mut().zip(&mut rows) {
            bar.set_message(format!("quality of {}", row.name));
            finish(worker, row)?;
        }
        (rows, model, true)
    } else {
        one_by_one(&jobs, runs, synthetic, &bar)?
    };
    bar.finish_and_clear();
    rows.iter_mut().for_each(|row| row.summarise(machine.read_gb_s));
    let report = Report::new(machine, model, rows, interleaved, &args);
    match args.format {
        Format::Json => output::json(&report),
        Format::Table => report.print(),
    }
}

/// Rows that do not fit into memory together take no turns: each is loaded, run and dropped.
fn one_by_one(
    jobs: &[Job],
    runs: usize,
    synthetic: bool,
    bar: &indicatif::ProgressBar,
) -> anyhow::Result<(Vec<Row>, ModelReport, bool)> {
    let (mut rows, mut model) = (Vec::new(), None);
    for job in jobs {
        bar.set_message(format!("loading for {}", job.selector));
        let mut worker = Worker::start(job)?;
        let mut row = Row::new(job);
        worker.run()?;
        bar.inc(1);
        for _ in 0..runs {
            bar.set_message(row.name.clone());
            row.add(worker.run()?);
            bar.inc(1);
        }
        model.get_or_insert_with(|| ModelReport::new(&worker.model, synthetic));
        finish(&mut worker, &mut row)?;
        rows.push(row);
    }
    Ok((rows, model.context("no rows")?, false))
}

/// Peak memory of the timed runs; then, where there is a tokenizer, a sample of the text and the quality.
fn finish(worker: &mut Worker, row: &mut Row) -> anyhow::Result<()> {
    row.peak_rss_bytes = worker.peak_rss()?;
    row.sample = worker.sample()?;
    row.quality = worker.quality()?;
    Ok(())
}

fn jobs(args: &Args) -> anyhow::Result<Vec<Job>> {
    let (source, default_selectors) = match &args.shape {
        Some(shape) => {
            let source = Source::Shape { name: shape.clone(), dtype: args.dtype.to_string() };
            (source, vec![SelectorSpec::Dense])
        }
        None => {
            let dir = match &args.model {
                Some(model) => sparrow::resolve_model(model)?,
                None => demo_dir()?,
            };
            let text = match &args.text {
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
    let mut selectors = if args.selector.is_empty() { default_selectors } else { args.selector.clone() };
    selectors.extend(args.active.map(|active| SelectorSpec::Forced { active, overlap: args.overlap }));
    let job = |selector: SelectorSpec| Job {
        source: source.clone(),
        selector,
        prompt_tokens: args.prompt_tokens as usize,
        gen_tokens: args.gen_tokens.unwrap_or(if args.shape.is_some() { 32 } else { 128 }) as usize,
        batch: args.batch as usize,
        threads: args.cpu.threads,
    };
    Ok(selectors.into_iter().map(job).collect())
}

/// Dense, and what the model was sparsified for, or the gate selector where it is lossless.
fn real_selectors(dir: &Path) -> anyhow::Result<Vec<SelectorSpec>> {
    let model = sparrow::Model::load(dir)?;
    let mut selectors = vec![SelectorSpec::Dense];
    match model.default_selector() {
        SelectorSpec::Dense if is_relu_family(model.spec.activation) => selectors.push(SelectorSpec::Gate(None)),
        SelectorSpec::Dense => {}
        selector => selectors.push(selector),
    }
    Ok(selectors)
}

/// Whether all rows' weights can be in memory at once, with a tenth to spare.
fn fits_together(jobs: &[Job]) -> anyhow::Result<bool> {
    let Source::Shape { name, dtype } = &jobs[0].source else { return Ok(true) };
    let dtype: DType = dtype.parse().map_err(anyhow::Error::msg)?;
    let each = sparrow::shapes::spec(name)?.parameters() * dtype.size_of() as u64;
    let available = machine::available_memory().unwrap_or(u64::MAX);
    if each as f64 * 1.05 > available as f64 {
        bail!(
            "{name} in {dtype} needs {}, but {} of memory are available: choose a smaller --shape or --dtype",
            output::bytes(each),
            output::bytes(available)
        );
    }
    Ok((each * jobs.len() as u64) as f64 * 1.1 <= available as f64)
}
