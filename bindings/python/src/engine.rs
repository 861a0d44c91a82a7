//! Requests that are served together, also those of several threads: whoever waits for one computes the next step of all.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use pyo3::prelude::*;
use sparrow::Error;
use sparrow::engine::{EngineOptions, Event, Finish, Request, RequestId, Usage};
use sparrow::internals::text::sample::{SampleOptions, Sampled};
use sparrow::session::Cancel;

use crate::errors::{exception, option};
use crate::guard::{call_back, cancel, check_caller, check_process, detached, lock, signals};
use crate::model::Model;
use crate::options;

/// A token and what the model thought of it.
#[pyclass(frozen, get_all, module = "sparrow_llm._native")]
#[derive(Clone)]
pub struct Token {
    /// Its id.
    id: u32,
    /// Text that it settles.
    text: String,
    /// Where they were asked for.
    logprob: Option<f32>,
    /// Most likely first.
    top: Option<Vec<(u32, f32)>>,
}

/// All that a request gave.
#[pyclass(frozen, get_all, module = "sparrow_llm._native")]
pub struct Outcome {
    tokens: Vec<Token>,
    text: String,
    /// Text that was held back after the last token.
    rest: String,
    /// `eos`, `stop`, `length`, `context` or `cancelled`.
    finish: &'static str,
    /// The stop string that was found.
    stop: Option<String>,
    prompt_tokens: usize,
    cached_tokens: usize,
    new_tokens: usize,
    /// Seconds.
    time_to_first_token: Option<f64>,
    /// Seconds.
    decode_time: f64,
    active_fraction: f64,
}

/// A request that is served.
struct Live {
    id: RequestId,
    /// How often all had been cancelled when it came.
    epoch: u64,
    tokens: Vec<Token>,
    /// Tokens that were told.
    told: usize,
    text: String,
    outcome: Option<Outcome>,
}

struct State {
    engine: sparrow::engine::Engine,
    live: HashMap<u64, Live>,
}

/// Serves requests of a model together.
#[pyclass(frozen, module = "sparrow_llm._native")]
pub struct Engine {
    model: Py<Model>,
    state: Mutex<State>,
    cancel: Cancel,
    /// How often all requests were cancelled.
    epoch: AtomicU64,
}

impl State {
    /// One step of all requests; those that came before the last cancelling end.
    fn turn(&mut self, epoch: u64, cancel: &Cancel) -> Result<(), Error> {
        cancel.reset();
        for live in self.live.values().filter(|live| live.epoch < epoch && live.outcome.is_none()) {
            self.engine.cancel(live.id)?;
        }
        match self.engine.step() {
            Ok(events) => events.into_iter().for_each(|event| self.take(event)),
            // All are ended in the next turn; what a signal's handler raised ends the call.
            Err(Error::Cancelled) if cancel.is_asked() => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Token { request, token, text, logprobs } => {
                if let Some(live) = self.live.get_mut(&request.0) {
                    live.text.push_str(&text);
                    let top = |s: &Sampled| s.top.iter().map(|t| (t.token, t.logprob)).collect();
                    let (logprob, top) = (logprobs.as_ref().map(|s| s.logprob), logprobs.as_ref().map(top));
                    live.tokens.push(Token { id: token, text, logprob, top });
                }
            }
            Event::Finished { request, finish, text, usage } => {
                if let Some(live) = self.live.get_mut(&request.0) {
                    live.text.push_str(&text);
                    let (tokens, text_of_all) = (live.tokens.clone(), live.text.clone());
                    live.outcome = Some(outcome(tokens, text_of_all, text, finish, &usage));
                }
            }
        }
    }
}

fn outcome(tokens: Vec<Token>, text: String, rest: String, finish: Finish, usage: &Usage) -> Outcome {
    let (finish, stop) = match finish {
        Finish::EndOfSequence => ("eos", None),
        Finish::StopString(stop) => ("stop", Some(stop)),
        Finish::MaxNewTokens => ("length", None),
        Finish::ContextFull => ("context", None),
        Finish::Cancelled => ("cancelled", None),
    };
    Outcome {
        tokens,
        text,
        rest,
        finish,
        stop,
        prompt_tokens: usage.prompt_tokens,
        cached_tokens: usage.cached_tokens,
        new_tokens: usage.new_tokens,
        time_to_first_token: usage.time_to_first_token.map(|time| time.as_secs_f64()),
        decode_time: usage.decode_time.as_secs_f64(),
        active_fraction: usage.active_fraction,
    }
}

impl Engine {
    fn check(&self) -> PyResult<()> {
        check_caller(self)?;
        check_process(&self.model.get().loaded.cpu)
    }

    /// What is new of a request, after a step where there is nothing yet.
    fn advance(&self, request: u64) -> PyResult<(Vec<Token>, Option<Outcome>)> {
        loop {
            signals()?;
            let mut state = lock(&self.state);
            let unknown = || option("request", format!("there is none with the number {request}"));
            let live = state.live.get_mut(&request).ok_or_else(unknown)?;
            let new = live.tokens[live.told..].to_vec();
            live.told = live.tokens.len();
            if live.outcome.is_some() {
                let ended = state.live.remove(&request).and_then(|live| live.outcome);
                return Ok((new, ended));
            }
            if !new.is_empty() {
                return Ok((new, None));
            }
            state.turn(self.epoch.load(Relaxed), &self.cancel).map_err(exception)?;
        }
    }

    /// Gives up requests that nobody waits for any more.
    fn give_up(&self, requests: &[u64]) {
        let mut state = lock(&self.state);
        for request in requests {
            if let Some(live) = state.live.remove(request) {
                // It has ended, or ends now: what it says of itself is wanted by nobody.
                let _ = state.engine.cancel(live.id);
            }
        }
    }
}

#[pymethods]
impl Engine {
    #[new]
    #[pyo3(signature = (model, *, kv_dtype=None, kv_sparsity=None, kv_dense_tail=None, kv_sinks=None, kept=0))]
    fn new(
        py: Python<'_>,
        model: Py<Model>,
        kv_dtype: Option<&str>,
        kv_sparsity: Option<&str>,
        kv_dense_tail: Option<usize>,
        kv_sinks: Option<usize>,
        kept: usize,
    ) -> PyResult<Self> {
        let kv = options::kv(kv_dtype, kv_sparsity, kv_dense_tail, kv_sinks)?;
        let loaded = &model.get().loaded;
        check_process(&loaded.cpu)?;
        let cancel = cancel();
        let state = detached(py, || {
            let options = EngineOptions { kept, queue: usize::MAX, ..EngineOptions::default() };
            let mut engine = loaded.engine(kv, options).map_err(exception)?;
            engine.session_mut().set_cancel(cancel.clone());
            Ok(Mutex::new(State { engine, live: HashMap::new() }))
        })?;
        Ok(Engine { model, state, cancel, epoch: AtomicU64::new(0) })
    }

    /// Takes a request, and returns its number.
    #[pyo3(signature = (
        prompt, *, max_new_tokens, temperature=0.0, top_k=0, top_p=1.0, min_p=0.0, repetition_penalty=1.0, presence_penalty=0.0,
        frequency_penalty=0.0, logit_bias=Vec::new(), seed=0, stop=Vec::new(), stop_token_ids=Vec::new(), ignore_eos=false,
        logprobs=None,
    ))]
    #[expect(clippy::too_many_arguments, reason = "they are keyword arguments")]
    fn submit(
        &self,
        py: Python<'_>,
        prompt: Vec<u32>,
        max_new_tokens: usize,
        temperature: f32,
        top_k: usize,
        top_p: f32,
        min_p: f32,
        repetition_penalty: f32,
        presence_penalty: f32,
        frequency_penalty: f32,
        logit_bias: Vec<(u32, f32)>,
        seed: u64,
        stop: Vec<String>,
        stop_token_ids: Vec<u32>,
        ignore_eos: bool,
        logprobs: Option<usize>,
    ) -> PyResult<u64> {
        self.check()?;
        let sample = SampleOptions {
            temperature,
            top_k,
            top_p,
            min_p,
            repetition_penalty,
            presence_penalty,
            frequency_penalty,
            logit_bias,
            top_logprobs: logprobs.unwrap_or(0),
            seed,
        };
        let logprobs = logprobs.is_some();
        let request =
            Request { prompt, sample, max_new_tokens, stop, ignore_eos, stop_tokens: stop_token_ids, logprobs };
        detached(py, || {
            let mut state = lock(&self.state);
            let id = state.engine.submit(request).map_err(exception)?;
            let epoch = self.epoch.load(Relaxed);
            let live = Live { id, epoch, tokens: Vec::new(), told: 0, text: String::new(), outcome: None };
            state.live.insert(id.0, live);
            Ok(id.0)
        })
    }

    /// The new tokens of a request, at least one unless it has ended, and all of it if it has.
    fn step(&self, py: Python<'_>, request: u64) -> PyResult<(Vec<Token>, Option<Outcome>)> {
        self.check()?;
        detached(py, || self.advance(request)).inspect_err(|_| self.give_up(&[request]))
    }

    /// Runs requests to their ends; `callback(index, token)` hears of every token.
    #[pyo3(signature = (requests, callback=None))]
    fn run(&self, py: Python<'_>, requests: Vec<u64>, callback: Option<Py<PyAny>>) -> PyResult<Vec<Outcome>> {
        self.check()?;
        let all = || {
            let mut outcomes: Vec<Option<Outcome>> = requests.iter().map(|_| None).collect();
            while let Some(first) = outcomes.iter().position(Option::is_none) {
                // Those that wait for the first have tokens too, once it has.
                for (index, &request) in requests.iter().enumerate().skip(first) {
                    if outcomes[index].is_some() {
                        continue;
                    }
                    let (tokens, outcome) = self.advance(request)?;
                    outcomes[index] = outcome;
                    for token in tokens {
                        let Some(callback) = &callback else { break };
                        call_back(self, |py| callback.call1(py, (index, token)))?;
                    }
                }
            }
            Ok(outcomes.into_iter().flatten().collect())
        };
        detached(py, all).inspect_err(|_| self.give_up(&requests))
    }

    /// Gives up a request.
    fn end(&self, py: Python<'_>, request: u64) -> PyResult<()> {
        check_process(&self.model.get().loaded.cpu)?;
        detached(py, || {
            self.give_up(&[request]);
            Ok(())
        })
    }

    /// Ends all requests there are, those in the middle of a prompt too.
    fn cancel(&self) {
        self.epoch.fetch_add(1, Relaxed);
        self.cancel.cancel();
    }
}
