//! A row of the benchmark in a process of its own: the parent writes one JSON request per line to its standard input
//! and reads one JSON answer per line from its standard output.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStderr, ChildStdin, ChildStdout, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sparrow::internals::record::Evaluation;
use sparrow_kernels::start_thread;

use super::figures::{LayerTimes, Loaded, Run};
use super::job::Job;
use super::subject::Subject;
use crate::machine;

/// What the program is called with to be a worker.
pub const NAME: &str = "bench-worker";

/// What a worker can be asked.
#[derive(Debug, Serialize, Deserialize)]
pub enum Request {
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
            .arg(NAME)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("starting a worker process")?;
        let requests = child.stdin.take().context("worker's standard input")?;
        let answers = lines(child.stdout.take().context("worker's standard output")?)?;
        let messages = Some(pass_on(child.stderr.take().context("worker's standard error")?)?);
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
fn lines(answers: ChildStdout) -> anyhow::Result<Receiver<String>> {
    let (sender, receiver) = mpsc::channel();
    on_thread(move || {
        let lines = BufReader::new(answers).lines().map_while(Result::ok);
        lines.map(|line| sender.send(line)).take_while(Result::is_ok).for_each(drop);
    })?;
    Ok(receiver)
}

/// Passes what the worker says on to standard error, and keeps the last line.
fn pass_on(messages: ChildStderr) -> anyhow::Result<JoinHandle<String>> {
    on_thread(move || {
        let mut last = String::new();
        for line in BufReader::new(messages).lines().map_while(Result::ok).filter(|line| !line.trim().is_empty()) {
            eprintln!("{line}");
            last = line;
        }
        last
    })
}

fn on_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> anyhow::Result<JoinHandle<T>> {
    start_thread("listener", work).context("starting a thread to listen to a worker process")
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
    let mut subject = match Subject::load(serde_json::from_str(&first)?) {
        Ok(bench) => bench,
        Err(error) => return answer::<()>(Err(error)),
    };
    answer(Ok(subject.loaded().clone()))?;
    for line in lines {
        match serde_json::from_str(&line?)? {
            Request::Run => answer(subject.run())?,
            Request::PeakRss => answer(machine::peak_resident_memory().context("this system does not report memory"))?,
            Request::LayerTimes => answer(subject.layer_times())?,
            Request::Sample => answer(subject.sample())?,
            Request::Quality { tokens } => answer(subject.quality(tokens))?,
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
