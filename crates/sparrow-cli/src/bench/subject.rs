//! A row of the benchmark with its model loaded: what is measured of it, and how.

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, bail};
use sparrow::engine::{EngineOptions, Event, Request};
use sparrow::internals::backend::{Threshold, Timing};
use sparrow::internals::record::Evaluation;
use sparrow::internals::select::{Calibrates, Scores};
use sparrow::internals::text::sample::{SampleOptions, Sampler};
use sparrow::{
    Cpu, DType, KvOptions, Load, Model, Placement, Selector, SelectorSpec, Session, SessionOptions, Tokenizer,
    WeightsFormat,
};
use sparrow_kernels::{Compute, Isa};
use sparrow_tools::eval::evaluate;
use sparrow_tools::shapes;
use sparrow_tools::text::windows;

use super::figures::{LayerTimes, Loaded, Profile, Run, named};
use super::job::{Job, Source};
use crate::machine::Input;
use crate::model::open;

/// Rank of random predictors, as a fraction of the intermediate size.
const RANK: f64 = 0.04;

/// What a profile calls the time to choose tokens.
const SAMPLING: &str = "sampling";

/// Tokens per window that quality is measured in, where so many fit.
pub const QUALITY_WINDOW: usize = 256;

/// A row with its model loaded.
pub struct Subject {
    job: Job,
    loaded: Loaded,
    opened: sparrow::Loaded,
    session: Session,
    /// The text's tokens, or random ones.
    ids: Vec<u32>,
    /// What every prompt and window begins with.
    beginning: Vec<u32>,
    tokenizer: Option<Arc<Tokenizer>>,
}

impl Subject {
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
        let placement: Placement = parse_or_default(job.weights.as_deref())?;
        let format: WeightsFormat = parse_or_default(job.weights_format.as_deref())?;
        let (load, name) = match &job.source {
            Source::Directory { dir, .. } => {
                (Load::new(dir).weights(placement).dtype(dtype), dir.display().to_string())
            }
            Source::Shape { name, zeros } => {
                let dtype = dtype.unwrap_or(DType::BF16);
                let neuron_major = !job.selector.is_dense() || matches!(placement, Placement::Cache(_));
                let mut model = shapes::random_model(shapes::spec(name)?, dtype, neuron_major, *zeros, &format, &cpu)?;
                model.placement = placement;
                (Load::made(model).dtype(dtype), name.clone())
            }
        };
        let load = load.cpu(cpu.clone()).format(format);
        let opened = match uncalibrated(&job) {
            None => open(load.selector(job.selector.clone()))?,
            // Random weights have no calibration, but a predictor costs the same whatever it predicts.
            Some(rule) => {
                let mut opened = open(load.selector(SelectorSpec::dense()))?;
                let spec = &opened.model.spec;
                let rank = (spec.intermediate_size as f64 * RANK).ceil() as usize;
                let predictors = shapes::random_predictors(spec, rank)?;
                opened.selector = Selector::low_rank(predictors, false, vec![rule; spec.num_layers]);
                opened
            }
        };
        let (model, tokenizer) = (&opened.model, opened.tokenizer().ok().cloned());
        let (ids, beginning) = match (&job.source, &tokenizer) {
            (Source::Directory { text, .. }, Some(tokenizer)) => {
                let text = std::fs::read_to_string(text).with_context(|| text.display().to_string())?;
                (tokenizer.encode(&text, false)?, tokenizer.beginning()?)
            }
            // Any ids will do: a walk through the vocabulary.
            _ => {
                let ids = (0..).map(|i: u32| i.wrapping_mul(7919) % model.spec.vocab_size as u32);
                (ids.take(1 << 16).collect(), Vec::new())
            }
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
        let weights = &model.weights;
        let quantised = job.dtype.is_some() || model.default_dtype().is_some();
        let as_stored = job.selector.is_dense() && !quantised && kv == KvOptions::default();
        let loaded = Loaded {
            name,
            parameters: model.spec.parameters(),
            dtype: weights.dtypes(),
            weight_bytes: weights.bytes(),
            as_stored,
            isa: cpu.compute.isa().to_string(),
            threads: cpu.compute.threads(),
        };
        let options = SessionOptions { sequences: job.batch, capacity, kv };
        let session = opened.session(options)?;
        Ok(Subject { job, loaded, opened, session, ids, beginning, tokenizer })
    }

    /// What was loaded.
    pub fn loaded(&self) -> &Loaded {
        &self.loaded
    }

    /// The prompt of one sequence: each starts elsewhere in the text.
    fn prompt(&self, sequence: usize) -> Vec<u32> {
        let room = self.ids.len() - self.job.prompt_tokens + 1;
        let start = sequence * self.job.prompt_tokens % room;
        let tokens = self.beginning.iter().chain(&self.ids[start..]);
        tokens.take(self.job.prompt_tokens).copied().collect()
    }

    /// Prefills every sequence and decodes, timed.
    pub fn run(&mut self) -> anyhow::Result<Run> {
        let (batch, vocab) = (self.job.batch, self.session.model().spec.vocab_size);
        let prompts: Vec<Vec<u32>> = (0..batch).map(|s| self.prompt(s)).collect();
        let mut sampler = Sampler::new(SampleOptions::default(), vocab)?;
        let mut tokens = Vec::with_capacity(batch);
        (0..batch).try_for_each(|s| self.session.truncate(s, 0))?;

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

    /// Of one more run, timed by component.
    pub fn layer_times(&mut self) -> anyhow::Result<LayerTimes> {
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
            self.session.truncate(s, 0)?;
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

    /// A greedy continuation of the prompt; none without a tokenizer.
    pub fn sample(&mut self) -> anyhow::Result<Option<String>> {
        const TOKENS: usize = 48;
        if self.tokenizer.is_none() {
            return Ok(None);
        }
        let mut engine = self.opened.engine(*self.session.kv(), EngineOptions::default())?;
        engine.submit(Request { prompt: self.prompt(0), max_new_tokens: TOKENS, ..Request::default() })?;
        let mut text = String::new();
        for event in engine.events() {
            let (Event::Token { text: piece, .. } | Event::Finished { text: piece, .. }) = event?;
            text.push_str(&piece);
        }
        Ok(Some(text))
    }

    /// Against dense, on the first `tokens` of the text; none without a tokenizer.
    pub fn quality(&mut self, tokens: usize) -> anyhow::Result<Option<Evaluation>> {
        let Source::Directory { dir, .. } = &self.job.source else { return Ok(None) };
        if self.tokenizer.is_none() {
            return Ok(None);
        }
        let window = QUALITY_WINDOW.min(self.session.capacity(0));
        let options = SessionOptions { sequences: 1, capacity: window, kv: KvOptions::default() };
        let stored = self.session.model();
        let model = if stored.weights.dtype().is_quantized() {
            Arc::new(Model::load(dir, Placement::default())?)
        } else {
            stored.clone()
        };
        let mut dense = Session::new(model, self.opened.cpu.clone(), Selector::Dense, options)?;
        let ids = windows(&self.ids[..self.ids.len().min(tokens)], &self.beginning, window)?;
        Ok(Some(evaluate(&mut dense, &mut self.session, &ids, window, &mut (), |_| ())?))
    }
}

/// The rule of a selector by predictors that random weights are asked to run with.
fn uncalibrated(job: &Job) -> Option<Threshold> {
    let predicts = job.selector.kind().calibrates() == Calibrates::Neurons(Scores::LowRank);
    let random = matches!(job.source, Source::Shape { .. });
    if predicts && random { job.selector.rule() } else { None }
}

fn parse_or_default<T: std::str::FromStr<Err = String> + Default>(text: Option<&str>) -> anyhow::Result<T> {
    text.map_or(Ok(T::default()), str::parse).map_err(anyhow::Error::msg)
}
