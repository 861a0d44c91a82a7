//! How fast settings are here: each in a process of its own, taking turns.

use std::path::Path;

use anyhow::Context;
use sparrow::KvOptions;
use sparrow_kernels::available_memory;
use sparrow_tools::tune::{Computed, Setting, Tuning};

use super::search::Tried;
use crate::bench::job::{Job, Source};
use crate::bench::worker::Worker;
use crate::output::progress;

/// Tokens of the prompt, and after it.
const TOKENS: usize = 64;

/// Times what was `tried` and keeps the target, but for inputs only the fewest of each type. The model as it is comes first.
///
/// # Errors
/// If a worker process ends early.
pub fn time(
    tuning: &mut Tuning,
    tried: &mut [Tried],
    text: &Path,
    threads: Option<u16>,
    runs: usize,
) -> anyhow::Result<()> {
    let fewer = |t: &Tried, than: usize| matches!(t.setting.computed, Computed::Inputs(at) if at > than);
    let wanted = |t: &Tried| match t.setting.computed {
        Computed::All | Computed::OpenGates => t.kept,
        Computed::Inputs(at) => {
            let same_type = |other: &&Tried| other.kept && other.setting.dtype == t.setting.dtype;
            t.kept && !tried.iter().filter(same_type).any(|other| fewer(other, at))
        }
    };
    let timed: Vec<usize> = (0..tried.len()).filter(|&at| wanted(&tried[at])).collect();
    let bar = progress("timing", (timed.len() * (runs + 1)) as u64, false);
    // Each has its weights again, and where inputs are selected a copy of them.
    let needed = 2 * timed.len() as u64 * tuning.weight_bytes();
    let together = available_memory().is_none_or(|available| needed < available);
    let mut speeds = vec![Vec::new(); timed.len()];
    let mut start = |at: usize| -> anyhow::Result<Worker> {
        let setting = tried[at].setting;
        bar.set_message(format!("timing {setting}"));
        tuning.apply(setting)?;
        let mut worker = Worker::start(&job(tuning, setting, text, threads))?;
        worker.run()?;
        bar.inc(1);
        Ok(worker)
    };
    let run = |worker: &mut Worker, speeds: &mut Vec<f64>| -> anyhow::Result<()> {
        let run = worker.run()?;
        bar.inc(1);
        speeds.push(run.decode_tokens as f64 / run.decode_s);
        Ok(())
    };
    if together {
        let mut workers = timed.iter().map(|&at| start(at)).collect::<anyhow::Result<Vec<_>>>()?;
        for _ in 0..runs {
            workers.iter_mut().zip(&mut speeds).try_for_each(|(worker, speeds)| run(worker, speeds))?;
        }
    } else {
        note!("the settings do not fit into memory together: they are timed one after the other");
        for (&at, speeds) in timed.iter().zip(&mut speeds) {
            let mut worker = start(at)?;
            (0..runs).try_for_each(|_| run(&mut worker, speeds))?;
        }
    }
    bar.finish_and_clear();
    let as_it_is = speeds.first().context("the model as it is was measured")?.clone();
    for (&at, speeds) in timed.iter().zip(&speeds) {
        tried[at].decode_tokens_per_s = Some(median(speeds.clone()));
        tried[at].speed_up = Some(median(speeds.iter().zip(&as_it_is).map(|(speed, base)| speed / base).collect()));
    }
    Ok(())
}

fn job(tuning: &Tuning, setting: Setting, text: &Path, threads: Option<u16>) -> Job {
    Job {
        source: Source::Directory { dir: tuning.dir(setting).to_owned(), text: text.to_owned() },
        weights: None,
        dtype: setting.dtype.map(|dtype| dtype.to_string()),
        weights_format: None,
        kv: KvOptions::default().into(),
        selector: setting.selector(),
        prompt_tokens: TOKENS,
        gen_tokens: TOKENS,
        batch: 1,
        threads,
        isa: None,
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() % 2 {
        0 => f64::midpoint(values[middle - 1], values[middle]),
        _ => values[middle],
    }
}
