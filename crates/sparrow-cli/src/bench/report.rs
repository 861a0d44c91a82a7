//! What `sparrow bench` prints.

use serde::Serialize;
use sparrow::internals::record::Evaluation;

use super::figures::{Loaded, Run};
use super::job::Job;
use super::workload::WorkloadArgs;
use crate::output::{self, percent};

#[derive(Serialize)]
pub struct Report {
    machine: Machine,
    model: ModelReport,
    settings: Settings,
    rows: Vec<Row>,
    speedup: Vec<Speedup>,
}

#[derive(Serialize)]
pub struct Machine {
    pub cpu: String,
    pub isa: String,
    pub threads: usize,
    pub read_gb_s: f64,
}

#[derive(Serialize)]
pub struct ModelReport {
    name: String,
    params: u64,
    /// Of the first row's weights.
    dtype: String,
    synthetic: bool,
}

impl ModelReport {
    pub fn new(loaded: &Loaded, synthetic: bool) -> Self {
        ModelReport { name: loaded.name.clone(), params: loaded.parameters, dtype: loaded.dtype.clone(), synthetic }
    }
}

#[derive(Serialize)]
struct Settings {
    prompt_tokens: u32,
    gen_tokens: usize,
    batch: u32,
    runs: usize,
    interleaved: bool,
}

/// Figures of one selector; times and rates are over runs: p50 and p90 of TTFT, medians of the rates.
#[derive(Serialize)]
pub struct Row {
    pub name: String,
    selector: String,
    dtype: String,
    pub active_fraction: f64,
    ttft_s: Distribution,
    pub prefill_tokens_per_s: f64,
    pub decode_tokens_per_s: f64,
    pub total_tokens_per_s: f64,
    pub weight_bytes_per_token: f64,
    pub decode_gb_s: f64,
    pub bandwidth_fraction: f64,
    /// Where the weights are, if it was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    weights: Option<String>,
    cache_bytes_per_token: f64,
    storage_bytes_per_token: f64,
    major_faults_per_token: f64,
    /// Of the caches of all sequences, at their capacity.
    kv_bytes: u64,
    pub peak_rss_bytes: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quality: Option<Evaluation>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sample: Option<String>,
    #[serde(skip)]
    runs: Vec<Run>,
    #[serde(skip)]
    gen_tokens: usize,
}

#[derive(Serialize, Default)]
struct Distribution {
    p50: f64,
    p90: f64,
    mean: f64,
}

/// A row against the first: above 1 is faster, or smaller.
#[derive(Serialize)]
struct Speedup {
    name: String,
    ttft: f64,
    decode: f64,
    total: f64,
    memory_reduction: f64,
}

impl Row {
    pub fn new(job: &Job, loaded: &Loaded) -> Self {
        let name = match job.selector.forced_sizes() {
            Some((active, overlap)) => {
                format!("active {}, overlap {}", percent(active.into()), percent(overlap.into()))
            }
            None => job.selector.to_string(),
        };
        // Where rows have a format or a type of their own, it is part of the name.
        let name = job.weights_format.as_ref().map_or(name.clone(), |format| format!("{format}, {name}"));
        let name = job.dtype.as_ref().map_or(name.clone(), |dtype| format!("{dtype}, {name}"));
        let name = job.weights.as_ref().map_or(name.clone(), |weights| format!("{name}, {weights}"));
        Row {
            name,
            selector: job.selector.to_string(),
            dtype: loaded.dtype.clone(),
            active_fraction: 1.0,
            ttft_s: Distribution::default(),
            prefill_tokens_per_s: 0.0,
            decode_tokens_per_s: 0.0,
            total_tokens_per_s: 0.0,
            weight_bytes_per_token: 0.0,
            decode_gb_s: 0.0,
            bandwidth_fraction: 0.0,
            weights: job.weights.clone(),
            cache_bytes_per_token: 0.0,
            storage_bytes_per_token: 0.0,
            major_faults_per_token: 0.0,
            kv_bytes: 0,
            peak_rss_bytes: 0,
            quality: None,
            sample: None,
            runs: Vec::new(),
            gen_tokens: job.gen_tokens,
        }
    }

    pub fn add(&mut self, run: Run) {
        self.runs.push(run);
    }

    fn sorted(&self, of: impl Fn(&Run) -> f64) -> Vec<f64> {
        let mut values: Vec<f64> = self.runs.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        values
    }

    /// The median over the runs.
    pub fn median(&self, of: impl Fn(&Run) -> f64) -> f64 {
        quantile(&self.sorted(of), 0.5)
    }

    /// Computes the figures from the runs.
    pub fn summarise(&mut self, read_gb_s: f64) {
        let ttft = self.sorted(|r| r.ttft_s);
        self.ttft_s = Distribution {
            p50: quantile(&ttft, 0.5),
            p90: quantile(&ttft, 0.9),
            mean: ttft.iter().sum::<f64>() / ttft.len() as f64,
        };
        self.prefill_tokens_per_s = self.median(|r| r.prompt_tokens as f64 / r.ttft_s);
        self.decode_tokens_per_s = self.median(|r| r.decode_tokens as f64 / r.decode_s);
        let steps = (self.gen_tokens - 1) as f64;
        self.total_tokens_per_s = self.median(|r| {
            let batch = r.decode_tokens as f64 / steps;
            (r.prompt_tokens as f64 + batch + r.decode_tokens as f64) / (r.ttft_s + r.decode_s)
        });
        self.active_fraction = self.median(|r| r.active_fraction);
        self.weight_bytes_per_token = self.median(|r| r.weight_bytes_per_token);
        self.cache_bytes_per_token = self.median(|r| r.cache_bytes_per_token);
        self.storage_bytes_per_token = self.median(|r| r.storage_bytes_per_token);
        self.kv_bytes = self.runs.iter().map(|r| r.kv_bytes).max().unwrap_or(0);
        self.major_faults_per_token = self.median(|r| r.major_faults_per_token);
        self.decode_gb_s = self.weight_bytes_per_token * self.decode_tokens_per_s / 1e9;
        self.bandwidth_fraction = self.decode_gb_s / read_gb_s;
    }
}

/// The value that a fraction `q` of the sorted values is at or below, interpolated.
fn quantile(sorted: &[f64], q: f64) -> f64 {
    let at = q * (sorted.len() - 1) as f64;
    let (low, high) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
    low + (high - low) * at.fract()
}

impl Report {
    pub fn new(machine: Machine, model: ModelReport, rows: Vec<Row>, interleaved: bool, args: &WorkloadArgs) -> Self {
        let first = &rows[0];
        let speedup = |row: &Row| Speedup {
            name: row.name.clone(),
            ttft: first.ttft_s.p50 / row.ttft_s.p50,
            decode: row.decode_tokens_per_s / first.decode_tokens_per_s,
            total: row.total_tokens_per_s / first.total_tokens_per_s,
            memory_reduction: first.peak_rss_bytes as f64 / row.peak_rss_bytes as f64,
        };
        let settings = Settings {
            prompt_tokens: args.prompt_tokens,
            gen_tokens: first.gen_tokens,
            batch: args.batch,
            runs: first.runs.len(),
            interleaved,
        };
        Report { speedup: rows.iter().map(speedup).collect(), machine, model, settings, rows }
    }

    pub fn print(&self) -> anyhow::Result<()> {
        let (m, s) = (&self.machine, &self.settings);
        outln!("{} ({:.2} M parameters, {})", self.model.name, self.model.params as f64 / 1e6, self.model.dtype);
        if self.model.synthetic {
            outln!("synthetic weights: speed only");
        }
        outln!("{}, {}, {} threads, reads {:.1} GB/s", m.cpu, m.isa, m.threads, m.read_gb_s);
        outln!(
            "{} prompt + {} generated tokens, batch {}, {} runs{}",
            s.prompt_tokens,
            s.gen_tokens,
            s.batch,
            s.runs,
            if s.interleaved {
                ", rows taking turns"
            } else {
                "; rows one after the other: together they exceed memory"
            }
        );
        outln!();
        let columns = |row: &Row| {
            vec![
                row.name.clone(),
                row.dtype.clone(),
                percent(row.active_fraction),
                format!("{} / {} / {}", ms(row.ttft_s.p50), ms(row.ttft_s.p90), ms(row.ttft_s.mean)),
                format!("{:.1}", row.prefill_tokens_per_s),
                format!("{:.1}", row.decode_tokens_per_s),
                format!("{:.1}", row.total_tokens_per_s),
                output::bytes(row.weight_bytes_per_token as u64),
                format!("{:.1} ({})", row.decode_gb_s, percent(row.bandwidth_fraction)),
                output::bytes(row.kv_bytes),
                output::bytes(row.peak_rss_bytes),
            ]
        };
        let header = [
            "row",
            "weights",
            "active",
            "TTFT p50/p90/mean ms",
            "prefill tok/s",
            "decode tok/s",
            "total tok/s",
            "weights/token",
            "GB/s (of read)",
            "KV cache",
            "peak memory",
        ];
        output::table(&header, self.rows.iter().map(columns))?;
        if self.rows.iter().any(|row| row.bandwidth_fraction > 1.1) {
            outln!("above 100 % of the memory's read bandwidth: these weights stay in the caches");
        }
        let placed: Vec<&Row> = self.rows.iter().filter(|row| row.weights.is_some()).collect();
        if !placed.is_empty() {
            outln!();
            let columns = |row: &&Row| {
                vec![
                    row.name.clone(),
                    output::bytes(row.cache_bytes_per_token as u64),
                    output::bytes(row.storage_bytes_per_token as u64),
                    format!("{:.1}", row.major_faults_per_token),
                    output::bytes(row.peak_rss_bytes),
                ]
            };
            let header = ["a decoded token", "into the cache", "read from storage", "major faults", "peak memory"];
            output::table(&header, placed.iter().map(columns))?;
            outln!(
                "cache rows read files past the page cache (with mmap: through it) and begin with none of the model in it; \
                 mmap rows read through it, warm"
            );
        }
        let speedup = |s: &Speedup| {
            let times = |x: f64| format!("{x:.2}×");
            vec![s.name.clone(), times(s.ttft), times(s.decode), times(s.total), times(s.memory_reduction)]
        };
        outln!();
        let header =
            [format!("against {}", self.rows[0].name), "TTFT".into(), "decode".into(), "total".into(), "memory".into()];
        output::table(&header.each_ref().map(String::as_str), self.speedup.iter().map(speedup))?;
        for row in &self.rows {
            if let Some(q) = &row.quality {
                outln!();
                outln!(
                    "quality of {}: perplexity {:.4}, dense {:.4} ({:+.2} %); KL divergence {:.1e}; same top token {:.2} %; \
                     {} active ({} tokens of text)",
                    row.name,
                    q.perplexity,
                    q.dense_perplexity,
                    (q.perplexity / q.dense_perplexity - 1.0) * 100.0,
                    q.kl_mean,
                    q.top1_agreement * 100.0,
                    percent(q.active_fraction),
                    q.tokens
                );
            }
        }
        for row in &self.rows {
            if let Some(text) = &row.sample {
                outln!();
                outln!("{} writes: …{}", row.name, text.trim_end());
            }
        }
        Ok(())
    }
}

fn ms(seconds: f64) -> String {
    format!("{:.*}", if seconds < 0.1 { 2 } else { 0 }, seconds * 1e3)
}

#[cfg(test)]
mod tests {
    use super::quantile;

    #[test]
    fn quantiles_interpolate() {
        assert_eq!(quantile(&[1.0, 2.0, 4.0], 0.5), 2.0);
        assert_eq!(quantile(&[1.0, 2.0], 0.5), 1.5);
        assert_eq!(quantile(&[3.0], 0.9), 3.0);
        assert!((quantile(&[0.0, 10.0], 0.9) - 9.0).abs() < 1e-12);
    }
}
