//! A row of the benchmark in a process of its own: the parent writes one JSON request per line to its standard input
//! and reads one JSON answer per line from its standard output.

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sparrow::checkpoint::Placement;
use sparrow::eval::{Evaluation, evaluate};
use sparrow::generate::{GenerateOptions, generate};
use sparrow::model::{Component, Timing};
use sparrow::sample::{SampleOptions, Sampler};
use sparrow::sparsity::Selector;
use sparrow::{Cpu, DType, KvOptions, Model, SelectorSpec, Session, SessionOptions, Tokenizer, WeightsFormat};
use sparrow_kernels::{Compute, Isa};

use crate::machine::{self, Input};
use crate::model::prepare;
use crate::output;

/// Rank of random predictors, as a fraction of the intermediate size.
const RANK: f64 = 0.04;

/// What a profile calls the time to choose tokens.
const SAMPLING: &str = "sampling";

/// Everything that defines a row.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Job {
    pub source: Source,
    /// Where the weights are; `None`: mapped.
    pub weights: Option<String>,
    /// Of the weights; `None`: as they are stored.
    pub dtype: Option<String>,
    /// How matrices are kept; `None`: `auto`.
    pub weights_format: Option<String>,
    pub kv: Kv,
    #[serde(with = "selector_text")]
    pub selector: SelectorSpec,
    pub prompt_tokens: usize,
    pub gen_tokens: usize,
    pub batch: usize,
    pub threads: Option<u16>,
    /// Instruction set tier; `None`: the best that `SPARROW_ISA` allows.
    pub isa: Option<String>,
}

impl Job {
    /// Bytes of weights that the worker will make up in memory; `None` for a directory, whose weights are mapped.
    ///
    /// # Errors
    /// If shape or element type are not known.
    pub fn random_weight_bytes(&self) -> anyhow::Result<Option<u64>> {
        let Source::Shape { name, zeros } = &self.source else { return Ok(None) };
        let dtype: DType = self.dtype.as_deref().unwrap_or("bf16").parse().map_err(anyhow::Error::msg)?;
        let parameters = sparrow::shapes::spec(name)?.parameters() as f64;
        let whole = parameters * dtype.row_bytes(1 << 10) as f64 / f64::from(1 << 10);
        let packed = whole * (1.0 - zeros) + parameters / 8.0;
        let may_pack = self.weights_format.as_deref() != Some("dense");
        Ok(Some(if may_pack { whole.min(packed) } else { whole } as u64))
    }

    /// Refuses weights that do not fit the memory that is available now.
    ///
    /// # Errors
    /// Says how much is missing.
    pub fn check_memory(&self) -> anyhow::Result<()> {
        let (Some(needed), Some(available)) = (self.random_weight_bytes()?, machine::available_memory()) else {
            return Ok(());
        };
        if needed as f64 * 1.05 > available as f64 {
            bail!(
                "the weights need {}, but {} of memory are available: choose a smaller shape or element type",
                output::bytes(needed),
                output::bytes(available)
            );
        }
        Ok(())
    }
}

/// A directory with a text for its tokenizer (checkpoints without a tokenizer get arbitrary tokens), or random weights.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Source {
    Directory {
        dir: PathBuf,
        text: PathBuf,
    },
    /// `zeros` is the fraction of the weights of layers and head that are 0.
    Shape {
        name: String,
        zeros: f64,
    },
}

/// [`KvOptions`] as text.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Kv {
    dtype: Option<String>,
    sparsity: Option<String>,
    dense_tail: usize,
    sinks: usize,
}

impl From<KvOptions> for Kv {
    fn from(options: KvOptions) -> Self {
        let KvOptions { dtype, sparsity, dense_tail, sinks } = options;
        Kv { dtype: dtype.map(|d| d.to_string()), sparsity: sparsity.map(|s| s.to_string()), dense_tail, sinks }
    }
}

impl Kv {
    fn options(&self) -> anyhow::Result<KvOptions> {
        let &Kv { ref dtype, ref sparsity, dense_tail, sinks } = self;
        let dtype = dtype.as_deref().map(str::parse).transpose()?;
        let sparsity = sparsity.as_deref().map(str::parse).transpose()?;
        Ok(KvOptions { dtype, sparsity, dense_tail, sinks })
    }
}

/// What the worker loaded.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Loaded {
    pub name: String,
    pub parameters: u64,
    pub dtype: String,
    /// Bytes of all matrices.
    pub weight_bytes: u64,
    /// Whether everything is computed as the model is stored, so that there is no quality to lose.
    pub as_stored: bool,
    pub isa: String,
    pub threads: usize,
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
    /// Bytes of the keys and values of all sequences after it.
    pub kv_bytes: u64,
}

/// Seconds that one decoder layer takes, averaged over the layers.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct LayerTime {
    /// All of it.
    pub all_s: f64,
    /// Attention without its norms.
    pub attention_s: f64,
    /// The MLP without its norms.
    pub mlp_s: f64,
}

/// The same of either phase.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct LayerTimes {
    /// For the prompt of one sequence.
    pub prefill: LayerTime,
    /// For one decode step of all sequences.
    pub decode: LayerTime,
}

/// Tokens per window that quality is measured in, where so many fit.
pub const QUALITY_WINDOW: usize = 256;

#[derive(Debug, Serialize, Deserialize)]
enum Request {
    Run,
    PeakRss,
    LayerTimes,
    Sample,
    Quality { tokens: usize },
}

/// The parent's end.
pub struct Worker {
    child: Child,
    requests: ChildStdin,
    answers: Receiver<String>,
    /// Gives the last line that the worker wrote to its standard error.
    messages: Option<JoinHandle<String>>,
    deadline: Option<(Instant, Duration)>,
    pub model: Loaded,
}

impl Worker {
    /// Starts a process for `job` and waits until its model is loaded.
    pub fn start(job: &Job) -> anyhow::Result<Self> {
        Self::start_within(job, None)
    }

    /// As [`start`](Self::start); a worker that has not answered everything it is asked within `limit` is ended.
    pub fn start_within(job: &Job, limit: Option<Duration>) -> anyhow::Result<Self> {
        let program = std::env::current_exe().context("finding this program")?;
        let mut child = std::process::Command::new(program)
            .arg("bench-worker")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("starting a worker process")?;
        let requests = child.stdin.take().context("worker's standard input")?;
        let answers = lines(child.stdout.take().context("worker's standard output")?);
        let messages = Some(pass_on(child.stderr.take().context("worker's standard error")?));
        let deadline = limit.map(|limit| (Instant::now() + limit, limit));
        let mut worker = Worker { child, requests, answers, messages, deadline, model: Loaded::default() };
        worker.model = worker.ask(job)?;
        Ok(worker)
    }

    pub fn run(&mut self) -> anyhow::Result<Run> {
        self.ask(&Request::Run)
    }

    pub fn peak_rss(&mut self) -> anyhow::Result<u64> {
        self.ask(&Request::PeakRss)
    }

    /// Of one more run, timed by component.
    pub fn layer_times(&mut self) -> anyhow::Result<LayerTimes> {
        self.ask(&Request::LayerTimes)
    }

    /// A greedy continuation of the prompt; none without a tokenizer.
    pub fn sample(&mut self) -> anyhow::Result<Option<String>> {
        self.ask(&Request::Sample)
    }

    /// Against dense, on the first `tokens` of the job's text; none without a tokenizer.
    pub fn quality(&mut self, tokens: usize) -> anyhow::Result<Option<Evaluation>> {
        self.ask(&Request::Quality { tokens })
    }

    fn ask<T: DeserializeOwned>(&mut self, request: &impl Serialize) -> anyhow::Result<T> {
        let sent = writeln!(self.requests, "{}", serde_json::to_string(request)?);
        let line = match self.deadline {
            _ if sent.is_err() => Err(RecvTimeoutError::Disconnected),
            None => self.answers.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some((deadline, _)) => self.answers.recv_timeout(deadline.saturating_duration_since(Instant::now())),
        };
        match (line, self.deadline) {
            (Ok(line), _) => {
                let answer: Result<T, String> = serde_json::from_str(&line)?;
                answer.map_err(anyhow::Error::msg)
            }
            (Err(RecvTimeoutError::Timeout), Some((_, limit))) => {
                self.child.kill()?;
                bail!("the worker process was ended: it took longer than {} s", limit.as_secs_f64())
            }
            (Err(_), _) => {
                let status = self.child.wait()?;
                let message = self.messages.take().and_then(|messages| messages.join().ok()).unwrap_or_default();
                let message = if message.is_empty() { "without a message" } else { message.as_str() };
                bail!("the worker process ended early ({status}): {message}")
            }
        }
    }
}

/// The lines of the worker's answers, read on a thread so that waiting for them can end.
fn lines(answers: ChildStdout) -> Receiver<String> {
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        let lines = BufReader::new(answers).lines().map_while(Result::ok);
        lines.map(|line| sender.send(line)).take_while(Result::is_ok).for_each(drop);
    });
    receiver
}

/// Passes what the worker says on to standard error, and keeps the last line.
fn pass_on(messages: ChildStderr) -> JoinHandle<String> {
    std::thread::spawn(move || {
        let mut last = String::new();
        for line in BufReader::new(messages).lines().map_while(Result::ok).filter(|line| !line.trim().is_empty()) {
            eprintln!("{line}");
            last = line;
        }
        last
    })
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
    machine::die_with_parent();
    machine::prefer_to_be_killed();
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
            Request::LayerTimes => answer(bench.layer_times())?,
            Request::Sample => answer(bench.sample())?,
            Request::Quality { tokens } => answer(bench.quality(tokens))?,
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

impl Profile {
    /// Of the norms all but the last are in the layers.
    fn layer_times(&self, layers: usize) -> LayerTimes {
        let layer_time = |timings: &[(String, Timing)]| {
            let sum = |of: &[Component]| {
                let timed = timings.iter().filter(|(name, _)| of.iter().any(|component| component.name() == name));
                timed.map(|(_, timing)| timing.mean).sum::<f64>() / layers as f64
            };
            let (attention_s, mlp_s) = (sum(&Component::OF_ATTENTION), sum(&Component::OF_MLP));
            LayerTime { all_s: attention_s + mlp_s + sum(&[Component::Norm]), attention_s, mlp_s }
        };
        LayerTimes { prefill: layer_time(&self.prefill), decode: layer_time(&self.decode) }
    }
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
        let threads = job.threads.map(usize::from);
        let cpu = match &job.isa {
            None => Cpu::new(threads),
            Some(isa) => Cpu { compute: Compute::with_isa(isa.parse::<Isa>()?, threads)? },
        };
        let cpu = Arc::new(cpu);
        let dtype: Option<DType> = job.dtype.as_deref().map(str::parse).transpose()?;
        let kv = job.kv.options()?;
        let placement: Placement =
            job.weights.as_deref().map_or(Ok(Placement::default()), str::parse).map_err(anyhow::Error::msg)?;
        let format: WeightsFormat = job
            .weights_format
            .as_deref()
            .map_or(Ok(WeightsFormat::default()), str::parse)
            .map_err(anyhow::Error::msg)?;
        let (mut model, tokenizer, name) = match &job.source {
            Source::Directory { dir, .. } => {
                let tokenizer = dir.join("tokenizer.json").is_file().then(|| Tokenizer::load(dir)).transpose()?;
                (Model::load_placed(dir, placement)?, tokenizer, dir.display().to_string())
            }
            Source::Shape { name, zeros } => {
                let dtype = dtype.unwrap_or(DType::BF16);
                let neuron_major = job.selector != SelectorSpec::Dense || matches!(placement, Placement::Cache(_));
                let spec = sparrow::shapes::spec(name)?;
                let mut model = sparrow::shapes::random_model(spec, dtype, neuron_major, *zeros, &format, &cpu)?;
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
            _ => prepare(&mut model, &job.selector, dtype, &format, &cpu)?,
        };
        let weights = &model.weights;
        let as_stored = job.selector == SelectorSpec::Dense && job.dtype.is_none() && kv == KvOptions::default();
        let loaded = Loaded {
            name,
            parameters: model.spec.parameters(),
            dtype: weights.dtype().to_string(),
            weight_bytes: weights.bytes(),
            as_stored,
            isa: cpu.compute.isa().to_string(),
            threads: cpu.compute.threads(),
        };
        let options = SessionOptions { sequences: job.batch, capacity, kv };
        let session = Session::new(Arc::new(model), cpu.clone(), selector, options)?;
        Ok(Bench { job, loaded, cpu, session, ids, tokenizer })
    }

    /// The prompt of one sequence: each starts elsewhere in the text.
    fn prompt(&self, sequence: usize) -> Vec<u32> {
        let room = self.ids.len() - self.job.prompt_tokens + 1;
        let start = sequence * self.job.prompt_tokens % room;
        self.ids[start..start + self.job.prompt_tokens].to_vec()
    }

    /// Prefills every sequence and decodes, timed.
    pub fn run(&mut self) -> anyhow::Result<Run> {
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
        let heads = self.session.model().weights.head.byte_len() * stats.steps;
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
            kv_bytes: self.session.kv_bytes() as u64,
        })
    }

    fn layer_times(&mut self) -> anyhow::Result<LayerTimes> {
        let layers = self.session.model().spec.num_layers;
        Ok(self.profile()?.layer_times(layers))
    }

    /// Times every component: of one prefill of each sequence's prompt, and of the decode steps after it; and sampling. A
    /// [`run`](Self::run) before pages in weights and grows working memory.
    pub fn profile(&mut self) -> anyhow::Result<Profile> {
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
        decode.push((SAMPLING.into(), Timing::of(&sampling)));
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

    fn quality(&mut self, tokens: usize) -> anyhow::Result<Option<Evaluation>> {
        let Source::Directory { dir, .. } = &self.job.source else { return Ok(None) };
        if self.tokenizer.is_none() {
            return Ok(None);
        }
        let window = QUALITY_WINDOW.min(self.session.capacity());
        let options = SessionOptions { sequences: 1, capacity: window, kv: KvOptions::default() };
        let stored = self.session.model();
        let model = if stored.weights.dtype().is_quantized() { Arc::new(Model::load(dir)?) } else { stored.clone() };
        let mut dense = Session::new(model, self.cpu.clone(), Selector::dense(), options)?;
        let ids = &self.ids[..self.ids.len().min(tokens)];
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
