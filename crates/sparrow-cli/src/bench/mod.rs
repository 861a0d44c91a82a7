//! `sparrow bench`: each row runs in a process of its own (so that its memory is its own), the rows taking turns run by
//! run (so that a machine whose speed drifts treats them alike).

pub mod figures;
pub mod job;
mod kernels;
pub mod report;
pub mod subject;
pub mod worker;
pub mod workload;

use anyhow::Context;
use sparrow_kernels::{Compute, available_memory, read_bandwidth};

use self::job::Job;
use self::report::{Machine, ModelReport, Report, Row};
use self::worker::Worker;
use self::workload::WorkloadArgs;
use crate::machine;
use crate::output::{self, Format};

/// Measure speed and memory, dense beside sparse.
#[derive(clap::Args)]
pub struct Args {
    /// Measure single kernels instead of a model, all or those named: kernels, element types, tiers (linear bf16 avx512)
    #[arg(long, num_args = 0.., value_name = "NAME", conflicts_with_all = [
        "model", "shape", "dtype", "selector", "active", "overlap", "prompt_tokens", "gen_tokens", "batch", "text", "quality_tokens", "runs", "weights", "weights_format", "zeros",
    ], help_heading = "Measurement")]
    kernels: Option<Vec<String>>,
    #[command(flatten)]
    workload: WorkloadArgs,
    /// Runs of each row [default: 10; 3 with --shape]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..), help_heading = "Measurement")]
    runs: Option<u32>,
    /// Form of the output
    #[arg(long, value_enum, default_value_t, help_heading = "Output")]
    format: Format,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    if let Some(names) = args.kernels {
        return kernels::run(names, args.workload.cpu.threads.map(usize::from), args.format);
    }
    let synthetic = args.workload.shape.is_some();
    let runs = args.runs.unwrap_or(if synthetic { 3 } else { 10 }) as usize;
    let quality_tokens = args.workload.quality_tokens as usize;
    let jobs = args.workload.jobs()?;

    let machine = {
        let compute = Compute::new(args.workload.cpu.threads.map(usize::from));
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
        let mut rows: Vec<Row> = jobs.iter().zip(&workers).map(|(job, worker)| Row::new(job, &worker.model)).collect();
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
            finish(worker, row, quality_tokens)?;
        }
        (rows, model, true)
    } else {
        one_by_one(&jobs, runs, synthetic, quality_tokens, &bar)?
    };
    bar.finish_and_clear();
    rows.iter_mut().for_each(|row| row.summarise(machine.read_gb_s));
    let report = Report::new(machine, model, rows, interleaved, &args.workload);
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
    quality_tokens: usize,
    bar: &indicatif::ProgressBar,
) -> anyhow::Result<(Vec<Row>, ModelReport, bool)> {
    let (mut rows, mut model) = (Vec::new(), None);
    for job in jobs {
        bar.set_message(format!("loading for {}", job.selector));
        let mut worker = Worker::start(job)?;
        let mut row = Row::new(job, &worker.model);
        worker.run()?;
        bar.inc(1);
        for _ in 0..runs {
            bar.set_message(row.name.clone());
            row.add(worker.run()?);
            bar.inc(1);
        }
        model.get_or_insert_with(|| ModelReport::new(&worker.model, synthetic));
        finish(&mut worker, &mut row, quality_tokens)?;
        rows.push(row);
    }
    Ok((rows, model.context("no rows")?, false))
}

/// Peak memory of the timed runs; then, where there is a tokenizer, a sample of the text and the quality.
fn finish(worker: &mut Worker, row: &mut Row, quality_tokens: usize) -> anyhow::Result<()> {
    row.peak_rss_bytes = worker.peak_rss()?;
    row.sample = worker.sample()?;
    row.quality = match quality_tokens {
        0 => None,
        _ if worker.model.as_stored => None,
        tokens => worker.quality(tokens)?,
    };
    Ok(())
}

/// Whether all rows' weights can be in memory at once, with a tenth to spare; refuses any that does not fit alone.
fn fits_together(jobs: &[Job]) -> anyhow::Result<bool> {
    jobs.iter().try_for_each(Job::check_memory)?;
    let sizes = jobs.iter().map(Job::random_weight_bytes).collect::<anyhow::Result<Vec<_>>>()?;
    let available = available_memory().unwrap_or(u64::MAX);
    Ok(sizes.into_iter().flatten().sum::<u64>() as f64 * 1.1 <= available as f64)
}
