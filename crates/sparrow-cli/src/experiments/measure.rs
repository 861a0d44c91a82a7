//! One experiment, measured by a worker process; and the columns of `results.csv` that say what came out.

use std::fmt::Write;
use std::time::{Duration, Instant, SystemTime};

use sparrow::internals::record::Evaluation;
use sparrow_kernels::{Compute, Isa, read_bandwidth};

use super::column::COLUMNS;
use super::experiment::Experiment;
use crate::bench::figures::{LayerTimes, Loaded};
use crate::bench::report::Row;
use crate::bench::worker::Worker;
use crate::machine;

/// What a worker measured.
pub struct Measured {
    /// Summarised.
    row: Row,
    loaded: Loaded,
    layer: LayerTimes,
    quality: Option<Evaluation>,
    read_gb_s: f64,
}

/// A measured column of `results.csv`.
struct Output {
    name: &'static str,
    meaning: &'static str,
    value: fn(&Measured) -> String,
}

#[rustfmt::skip]
const OUTPUTS: [Output; 29] = [
    Output { name: "prefill_s", meaning: "from the prompts to the first token of every sequence, seconds; like all times and rates the median over the runs", value: |m| number(m.row.median(|r| r.ttft_s)) },
    Output { name: "decode_s", meaning: "from there to the last token", value: |m| number(m.row.median(|r| r.decode_s)) },
    Output { name: "total_s", meaning: "both", value: |m| number(m.row.median(|r| r.ttft_s + r.decode_s)) },
    Output { name: "prefill_tokens_per_s", meaning: "prompt tokens of all sequences per second", value: |m| number(m.row.prefill_tokens_per_s) },
    Output { name: "decode_tokens_per_s", meaning: "tokens of all sequences after their first, per second", value: |m| number(m.row.decode_tokens_per_s) },
    Output { name: "total_tokens_per_s", meaning: "prompt and generated tokens per second", value: |m| number(m.row.total_tokens_per_s) },
    Output { name: "layer_prefill_s", meaning: "time of one layer for one sequence's prompt, averaged over layers, of one more run", value: |m| number(m.layer.prefill.all_s) },
    Output { name: "layer_prefill_attention_s", meaning: "of that, attention without its norms: projections, rotation, cache, scores and values", value: |m| number(m.layer.prefill.attention_s) },
    Output { name: "layer_prefill_mlp_s", meaning: "of that, the MLP without its norms, selecting included", value: |m| number(m.layer.prefill.mlp_s) },
    Output { name: "layer_decode_s", meaning: "time of one layer for one step of all sequences, likewise", value: |m| number(m.layer.decode.all_s) },
    Output { name: "layer_decode_attention_s", meaning: "of that, attention", value: |m| number(m.layer.decode.attention_s) },
    Output { name: "layer_decode_mlp_s", meaning: "of that, the MLP", value: |m| number(m.layer.decode.mlp_s) },
    Output { name: "active_fraction", meaning: "what the selector kept while decoding", value: |m| number(m.row.active_fraction) },
    Output { name: "weight_bytes", meaning: "bytes of all matrices", value: |m| m.loaded.weight_bytes.to_string() },
    Output { name: "weight_bytes_per_token", meaning: "weight bytes read per generated token", value: |m| number(m.row.weight_bytes_per_token) },
    Output { name: "kv_bytes", meaning: "bytes of all sequences' keys and values", value: |m| number(m.row.median(|r| r.kv_bytes as f64)) },
    Output { name: "peak_rss_bytes", meaning: "most resident memory of the row's process, before quality is measured", value: |m| m.row.peak_rss_bytes.to_string() },
    Output { name: "decode_gb_s", meaning: "weight bytes read per second while decoding, 10⁹", value: |m| number(m.row.decode_gb_s) },
    Output { name: "read_gb_s", meaning: "what the memory could do just before the row: where it differs between rows, the machine drifted", value: |m| number(m.read_gb_s) },
    Output { name: "bandwidth_fraction", meaning: "the one ÷ the other", value: |m| number(m.row.bandwidth_fraction) },
    Output { name: "perplexity", meaning: "of the text; this and the next five are empty for random weights and without a tokenizer", value: |m| quality(m, |q| q.perplexity) },
    Output { name: "dense_perplexity", meaning: "of the model as it is stored", value: |m| quality(m, |q| q.dense_perplexity) },
    Output { name: "kl_mean", meaning: "mean KL divergence from the model as it is stored, nats", value: |m| quality(m, |q| q.kl_mean) },
    Output { name: "kl_p99", meaning: "its 99th percentile", value: |m| quality(m, |q| q.kl_p99) },
    Output { name: "top1_agreement", meaning: "fraction of tokens with the same most likely token", value: |m| quality(m, |q| q.top1_agreement) },
    Output { name: "quality_tokens", meaning: "tokens predicted, in windows of 256 or what prompt and generated tokens come to", value: |m| quality(m, |q| q.tokens as f64) },
    Output { name: "weights_dtype", meaning: "element type of the layers' matrices", value: |m| m.loaded.dtype.clone() },
    Output { name: "isa_used", meaning: "instruction set tier that ran", value: |m| m.loaded.isa.clone() },
    Output { name: "threads_used", meaning: "threads that ran", value: |m| m.loaded.threads.to_string() },
];

/// Columns of `results.csv` between those of `experiments.csv` and what was measured.
const STATUS: [(&str, &str); 5] = [
    ("status", "ok or failed"),
    ("error", "why it failed"),
    ("date", "when the row was done, UTC"),
    ("elapsed_s", "seconds that the row took in all"),
    ("cpu", "the processor's name"),
];

/// The columns of `results.csv`: the row's number in `experiments.csv`, its columns, and what came out.
pub fn header() -> Vec<String> {
    let asked = COLUMNS.iter().map(|column| column.name);
    let names = std::iter::once("row").chain(asked).chain(STATUS.map(|(name, _)| name));
    names.chain(OUTPUTS.iter().map(|output| output.name)).map(str::to_owned).collect()
}

/// The columns of `results.csv` as a help text.
pub fn help() -> String {
    let mut text = "Columns of results.csv: row (from 1), those of experiments.csv, and\n".to_owned();
    for (name, meaning) in STATUS.into_iter().chain(OUTPUTS.iter().map(|output| (output.name, output.meaning))) {
        let _ = writeln!(text, "  {name:<25} {meaning}");
    }
    text + "A row that failed goes once more if its line is deleted from results.csv and the sheet is run again."
}

/// Measures row `number` and makes its record; a failure is a record too.
pub fn record(number: usize, experiment: &Experiment) -> Vec<String> {
    let start = Instant::now();
    let measured = measure(experiment);
    let (status, error) = match &measured {
        Ok(_) => ("ok", String::new()),
        Err(error) => ("failed", format!("{error:#}")),
    };
    let date = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
    let asked = COLUMNS.iter().map(|column| (column.write)(experiment));
    let came = [status.to_owned(), error, date, number_of(start.elapsed()), machine::cpu_name()];
    let output = |output: &Output| measured.as_ref().map_or(String::new(), output.value);
    std::iter::once(number.to_string()).chain(asked).chain(came).chain(OUTPUTS.iter().map(output)).collect()
}

fn measure(experiment: &Experiment) -> anyhow::Result<Measured> {
    let job = experiment.job()?;
    job.check_memory()?;
    let read_gb_s = {
        let compute = Compute::with_isa(experiment.isa.unwrap_or_else(Isa::best), experiment.threads.map(usize::from))?;
        read_bandwidth(&compute)
    };
    let mut worker = Worker::start_within(&job, experiment.timeout_s.map(Duration::from_secs))?;
    let mut row = Row::new(&job, &worker.model);
    worker.run()?;
    for _ in 0..experiment.runs {
        row.add(worker.run()?);
    }
    row.peak_rss_bytes = worker.peak_rss()?;
    row.summarise(read_gb_s);
    let layer = worker.layer_times()?;
    let quality = if experiment.eval_tokens == 0 { None } else { worker.quality(experiment.eval_tokens)? };
    Ok(Measured { row, loaded: worker.model.clone(), layer, quality, read_gb_s })
}

/// Six significant digits.
fn number(value: f64) -> String {
    format!("{value:.5e}").parse::<f64>().map_or(String::new(), |rounded| rounded.to_string())
}

fn number_of(duration: Duration) -> String {
    number(duration.as_secs_f64())
}

fn quality(measured: &Measured, of: fn(&Evaluation) -> f64) -> String {
    measured.quality.as_ref().map_or(String::new(), |quality| number(of(quality)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_keep_six_digits() {
        assert_eq!(number(12_345_678.0), "12345700");
        assert_eq!(number(0.000_123_456_78), "0.000123457");
        assert_eq!(number(0.0), "0");
    }

    #[test]
    fn names_are_distinct() {
        let header = header();
        let distinct: std::collections::BTreeSet<_> = header.iter().collect();
        assert_eq!(distinct.len(), header.len());
    }
}
