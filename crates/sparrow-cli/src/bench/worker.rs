//! A row of the benchmark in a process of its own: the parent writes one JSON request per line to its standard input
//! and reads one JSON answer per line from its standard output.

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, bail};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sparrow::checkpoint::Placement;
use sparrow::eval::{Evaluation, evaluate};
use sparrow::generate::{GenerateOptions, generate};
use sparrow::model::{Component, Timing};
use sparrow::sample::{SampleOptions, Sampler};
use sparrow::sparsity::Selector;
use sparrow::{Cpu, DType, Model, SelectorSpec, Session, SessionOptions, Tokenizer};

use crate::machine::{self, Input};
use crate::model::prepare;

/// Rank of random predictors, as a fraction of the intermediate size.
const RANK: f64 = 0.04;

/// Everything that defines a row.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Job {
    pub source: Source,
    /// Where the weights are; `None`: mapped.
    pub weights: Option<String>,
    /// Of the weights; `None`: as they are stored.
    pub dtype: Option<String>,
    /// Of cached keys and values; `None`: the weights' own, or bf16.
    pub kv_dtype: Option<String>,
    #[serde(with = "selector_text")]
    pub selector: SelectorSpec,
    pub prompt_tokens: usize,
    pub gen_tokens: usize,
    pub batch: usize,
    pub threads: Option<u16>,
}

/// A directory with a text for its tokenizer (checkpoints without a tokenizer get arbitrary tokens), or random weights.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Source {
    Directory { dir: PathBuf, text: PathBuf },
    Shape { name: String },
}

/// What the worker loaded.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Loaded {
    pub name: String,
    pub parameters: u64,
    pub dtype: String,
}

/// Measurements of one run.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Run {
    /// From the prompts to the first token of every sequence, seconds.
    pub ttft_s: f64,
    /// From there to the last token, seconds.
    pub decode_s: f64,
    /// Prompt tokens of all sequences.
    pub prompt_tokens: usize,
    /// Tokens generated after each sequence's first.
    pub decode_tokens: usize,
    /// While decoding.
    pub active_fraction: f64,
    /// Weight bytes read while decoding ÷ `decode_tokens`.
    pub weight_bytes_per_token: f64,
    /// Bytes of neurons that the weight cache took in while decoding ÷ `decode_tokens`.
    pub cache_bytes_per_token: f64,
    /// Bytes read from storage while decoding, by whatever way, ÷ `decode_tokens`; 0 where the system does not say.
    pub storage_bytes_per_token: f64,
    /// Page faults that waited for storage while decoding ÷ `decode_tokens`.
    pub major_faults_per_token: f64,
}

#[derive(Debug, Serialize, Deserialize)]
enum Request {
    Run,
    PeakRss,
    Sample,
    Quality,
}

/// The parent's end.
pub struct Worker {
    child: Child,
    requests: ChildStdin,
    answers: BufReader<ChildStdout>,
    pub model: Loaded,
}

impl Worker {
    /// Starts a process for `job` and waits until its model is loaded.
    pub fn start(job: &Job) -> anyhow::Result<Self> {
        let program = std::env::current_exe().context("finding this program")?;
        let mut child = std::process::Command::new(program)
            .arg("bench-worker")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("starting a worker process")?;
        let requests = child.stdin.take().context("worker's standard input")?;
        let answers = BufReader::new(child.stdout.take().context("worker's standard output")?);
        let model = Loaded { name: String::new(), parameters: 0, dtype: String::new() };
        let mut worker = Worker { child, requests, answers, model };
        worker.model = worker.ask(job)?;
        Ok(worker)
    }

    pub fn run(&mut self) -> anyhow::Result<Run> {
        self.ask(&Request::Run)
    }

    pub fn peak_rss(&mut self) -> anyhow::Result<u64> {
        self.ask(&Request::PeakRss)
    }

    /// A greedy continuation of the prompt; none without a tokenizer.
    pub fn sample(&mut self) -> anyhow::Result<Option<String>> {
        self.ask(&Request::Sample)
    }

    /// Against dense, on the job's text; none for the dense row, and none without a tokenizer.
    pub fn quality(&mut self) -> anyhow::Result<Option<Evaluation>> {
        self.ask(&Request::Quality)
    }

    fn ask<T: DeserializeOwned>(&mut self, request: &impl Serialize) -> anyhow::Result<T> {
        let sent = writeln!(self.requests, "{}", serde_json::to_string(request)?);
        let mut line = String::new();
        if sent.is_err() || self.answers.read_line(&mut line)? == 0 {
            let status = self.child.wait()?;
            bail!("the worker process ended early ({status}); its message is above");
        }
        let answer: Result<T, String> = serde_json::from_str(&line)?;
        answer.map_err(anyhow::Error::msg)
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // A worker that is still computing is of no use any more.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The worker's end: `sparrow bench-worker`.
pub fn run() -> anyhow::Result<()> {
    let mut lines = std::io::stdin().lines();
    let first = lines.next().context("bench-worker is started by `sparrow bench`")??;
    let mut bench = match Bench::load(serde_json::from_str(&first)?) {
        Ok(bench) => bench,
        Err(error) => return answer::<()>(Err(error)),
    };
    answer(Ok(bench.loaded.clone()))?;
    for line in lines {
        match serde_json::from_str(&line?)? {
            Request::Run => answer(bench.run())?,
            Request::PeakRss => answer(machine::peak_resident_memory().context("this system does not report memory"))?,
            Request::Sample => answer(bench.sample())?,
            Request::Quality => answer(bench.quality())?,
        }
    }
    Ok(())
}

fn answer<T: Serialize>(result: anyhow::Result<T>) -> anyhow::Result<()> {
    let result = result.map_err(|e| format!("{e:#}"));
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}", serde_json::to_string(&result)?)?;
    Ok(out.flush()?)
}

/// Seconds per call by component.
pub struct Profile {
    /// One call per sequence.
    pub prefill: Vec<(String, Timing)>,
    /// One call per token (of all sequences).
    pub decode: Vec<(String, Timing)>,
}

fn named(timings: Vec<(Component, Timing)>) -> Vec<(String, Timing)> {
    timings.into_iter().map(|(c, t)| (c.name().to_owned(), t)).collect()
}

/// A row with its model loaded.
pub struct Bench {
    job: Job,
    loaded: Loaded,
    cpu: Arc<Cpu>,
    session: Session,
    /// The text's tokens, or random ones.
    ids: Vec<u32>,
    tokenizer: Option<Tokenizer>,
}

impl Bench {
    /// Loads the job's model.
    pub fn load(job: Job) -> anyhow::Result<Self> {
        let cpu = Arc::new(Cpu::new(job.threads.map(usize::from)));
        let parse = |name: &Option<String>| name.as_deref().map(str::parse::<DType>).transpose();
        let dtype = parse(&job.dtype).map_err(anyhow::Error::msg)?;
        let kv_dtype = parse(&job.kv_dtype).map_err(anyhow::Error::msg)?;
        let placement: Placement =
            job.weights.as_deref().map_or(Ok(Placement::default()), str::parse).map_err(anyhow::Error::msg)?;
        let (mut model, tokenizer, name) = match &job.source {
            Source::Directory { dir, .. } => {
                let tokenizer = dir.join("tokenizer.json").is_file().then(|| Tokenizer::load(dir)).transpose()?;
                (Model::load_placed(dir, placement)?, tokenizer, dir.display().to_string())
            }
            Source::Shape { name } => {
                let dtype = dtype.unwrap_or(DType::BF16);
                let neuron_major = job.selector != SelectorSpec::Dense || matches!(placement, Placement::Cache(_));
                let mut model = sparrow::shapes::random_model(sparrow::shapes::spec(name)?, dtype, neuron_major)?;
                model.placement = placement;
                (model, None, name.clone())
            }
        };
        let ids = match (&job.source, &tokenizer) {
            (Source::Directory { text, .. }, Some(tokenizer)) => {
                let text = std::fs::read_to_string(text).with_context(|| text.display().to_string())?;
                tokenizer.encode(&text, false)?
            }
            // Any ids will do: a walk through the vocabulary.
            _ => (0..).map(|i: u32| i.wrapping_mul(7919) % model.spec.vocab_size as u32).take(1 << 16).collect(),
        };
        let capacity = job.prompt_tokens + job.gen_tokens;
        let context = model.spec.context_length();
        if capacity > context || ids.len() < job.prompt_tokens {
            bail!(
                "--prompt-tokens {} and --gen-tokens {} do not fit: the context is {context} tokens, the text has {}",
                job.prompt_tokens,
                job.gen_tokens,
                ids.len()
            );
        }
        let selector = match (&job.source, &job.selector) {
            // Random weights have no calibration, but a predictor costs the same whatever it predicts.
            (Source::Shape { .. }, SelectorSpec::LowRank(Some(rule))) => {
                let rank = (model.spec.intermediate_size as f64 * RANK).ceil() as usize;
                let predictors = sparrow::shapes::random_predictors(&model.spec, rank)?;
                Selector::low_rank(predictors, false, vec![*rule; model.spec.num_layers])
            }
            _ => prepare(&mut model, &job.selector, dtype, &cpu)?,
        };
        let dtype = model.weights.dtype();
        let loaded = Loaded { name, parameters: model.spec.parameters(), dtype: dtype.to_string() };
        let options = SessionOptions { sequences: job.batch, capacity, kv_dtype };
        let session = Session::new(Arc::new(model), cpu.clone(), selector, options)?;
        Ok(Bench { job, loaded, cpu, session, ids, tokenizer })
    }

    /// The prompt of one sequence: each starts elsewhere in the text.
    fn prompt(&self, sequence: usize) -> Vec<u32> {
        let room = self.ids.len() - self.job.prompt_tokens + 1;
        let start = sequence * self.job.prompt_tokens % room;
        self.ids[start..start + self.job.prompt_tokens].to_vec()
    }

    fn run(&mut self) -> anyhow::Result<Run> {
        let (batch, vocab) = (self.job.batch, self.session.model().spec.vocab_size);
        let prompts: Vec<Vec<u32>> = (0..batch).map(|s| self.prompt(s)).collect();
        let mut sampler = Sampler::new(SampleOptions::default(), vocab)?;
        let mut tokens = Vec::with_capacity(batch);
        (0..batch).for_each(|s| self.session.truncate(s, 0));

        let start = Instant::now();
        for (s, prompt) in prompts.iter().enumerate() {
            tokens.push((s, sampler.sample(self.session.prefill(s, prompt)?)));
        }
        let ttft_s = start.elapsed().as_secs_f64();

        self.session.reset_stats();
        let steps = self.job.gen_tokens - 1;
        let input = Input::so_far();
        let decode = Instant::now();
        for _ in 0..steps {
            let logits = self.session.decode(&tokens)?;
            for ((_, token), logits) in tokens.iter_mut().zip(logits.chunks_exact(vocab)) {
                *token = sampler.sample(logits);
            }
        }
        let decode_s = decode.elapsed().as_secs_f64();
        let stats = self.session.stats();
        let heads = self.session.model().weights.head.bytes().len() as u64 * stats.steps;
        let decode_tokens = steps * batch;
        let per_token = |total: u64| total as f64 / decode_tokens as f64;
        let read = input.zip(Input::so_far());
        let since = |of: fn(Input) -> u64| read.map_or(0.0, |(before, after)| per_token(of(after) - of(before)));
        Ok(Run {
            ttft_s,
            decode_s,
            prompt_tokens: batch * self.job.prompt_tokens,
            decode_tokens,
            active_fraction: stats.active_fraction(),
            weight_bytes_per_token: (heads + stats.layer_bytes) as f64 / decode_tokens as f64,
            cache_bytes_per_token: per_token(stats.store_bytes),
            storage_bytes_per_token: since(|input| input.bytes),
            major_faults_per_token: since(|input| input.major_faults),
        })
    }

    /// Times every component: of one prefill of each sequence's prompt, and of the decode steps after it; and sampling.
    pub fn profile(&mut self) -> anyhow::Result<Profile> {
        // Warm up: page in weights, grow working memory.
        self.run()?;
        let (batch, vocab) = (self.job.batch, self.session.model().spec.vocab_size);
        let mut sampler = Sampler::new(SampleOptions::default(), vocab)?;
        let mut tokens = Vec::with_capacity(batch);
        self.session.start_profile();
        for s in 0..batch {
            self.session.truncate(s, 0);
            let prompt = self.prompt(s);
            tokens.push((s, sampler.sample(self.session.prefill(s, &prompt)?)));
        }
        let prefill = named(self.session.profile());
        self.session.start_profile();
        let mut sampling = Vec::new();
        for _ in 1..self.job.gen_tokens {
            let logits = self.session.decode(&tokens)?;
            let start = Instant::now();
            for ((_, token), logits) in tokens.iter_mut().zip(logits.chunks_exact(vocab)) {
                *token = sampler.sample(logits);
            }
            sampling.push(start.elapsed().as_secs_f64());
        }
        let mut decode = named(self.session.profile());
        decode.push(("sampling".into(), Timing::of(&sampling)));
        Ok(Profile { prefill, decode })
    }

    fn sample(&mut self) -> anyhow::Result<Option<String>> {
        const TOKENS: usize = 48;
        let Some(tokenizer) = &self.tokenizer else { return Ok(None) };
        let prompt = self.prompt(0);
        self.session.truncate(0, 0);
        let options = GenerateOptions { max_new_tokens: TOKENS, ..GenerateOptions::default() };
        let mut text = String::new();
        let emit = |piece: &str| {
            text.push_str(piece);
            Ok(())
        };
        generate(&mut self.session, 0, tokenizer, &prompt, &options, emit)?;
        Ok(Some(text))
    }

    fn quality(&mut self) -> anyhow::Result<Option<Evaluation>> {
        const WINDOW: usize = 256;
        const TOKENS: usize = 8192;
        let quantized = self.session.model().weights.dtype().is_quantized();
        let as_stored = self.job.selector == SelectorSpec::Dense && !quantized && self.job.kv_dtype.is_none();
        let Source::Directory { dir, .. } = &self.job.source else { return Ok(None) };
        if as_stored || self.tokenizer.is_none() {
            return Ok(None);
        }
        let window = WINDOW.min(self.session.capacity());
        let options = SessionOptions { sequences: 1, capacity: window, kv_dtype: None };
        let model = if quantized { Arc::new(Model::load(dir)?) } else { self.session.model().clone() };
        let mut dense = Session::new(model, self.cpu.clone(), Selector::dense(), options)?;
        let ids = &self.ids[..self.ids.len().min(TOKENS)];
        Ok(Some(evaluate(&mut dense, &mut self.session, ids, window, &mut (), |_| ())?))
    }
}

/// A selector as its text, so that a job is plain JSON.
mod selector_text {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};
    use sparrow::SelectorSpec;

    pub fn serialize<S: Serializer>(selector: &SelectorSpec, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(selector)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<SelectorSpec, D::Error> {
        String::deserialize(d)?.parse().map_err(D::Error::custom)
    }
}
