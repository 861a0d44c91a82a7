//! The loop: schedule, step, update.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use super::event::{Event, Finish};
use super::request::Request;
use super::running::{Rules, Running};
use super::scheduler::{Limits, Piece, RequestId, Scheduler};
use crate::backend::{Backend, Cpu};
use crate::error::{Error, Result};
use crate::run::{Logits, PREFILL_ROWS, Segment, Session};
use crate::text::Tokenizer;
use crate::text::sample::Sampled;

/// How much an engine serves at once.
#[derive(Debug, Clone, Copy)]
pub struct EngineOptions {
    /// Requests that run together.
    pub slots: usize,
    /// Tokens of one step at most, of prompts and of sequences that decode.
    pub step_tokens: usize,
    /// Requests that wait at most.
    pub queue: usize,
    /// Sequences of ended requests that stay in memory, the newest ones: a request that begins as one of them did computes only
    /// the rest of its prompt.
    pub kept: usize,
}

impl Default for EngineOptions {
    fn default() -> Self {
        EngineOptions { slots: 8, step_tokens: PREFILL_ROWS, queue: 1024, kept: 0 }
    }
}

/// Serves requests with one session.
pub struct Engine<B: Backend = Cpu> {
    session: Session<B>,
    tokenizer: Option<Arc<Tokenizer>>,
    scheduler: Scheduler,
    requests: Vec<Running>,
    /// Sequences of ended requests, the oldest first, and how many there may be.
    kept: Vec<usize>,
    keep: usize,
    next: u64,
    pieces: Vec<Piece>,
    /// What is to be told and was not yet.
    told: VecDeque<Event>,
}

impl<B: Backend> Engine<B> {
    /// An engine over a session without sequences; without a tokenizer it tells tokens and no text.
    ///
    /// # Errors
    /// If there is no slot, or a step has less room than there are slots.
    pub fn new(session: Session<B>, tokenizer: Option<Arc<Tokenizer>>, options: EngineOptions) -> Result<Self> {
        let EngineOptions { slots, step_tokens, queue, kept: keep } = options;
        let scheduler = Scheduler::new(Limits::new(slots, step_tokens, queue)?);
        let (requests, kept, pieces, told) = (Vec::new(), Vec::new(), Vec::new(), VecDeque::new());
        Ok(Engine { session, tokenizer, scheduler, requests, kept, keep, next: 0, pieces, told })
    }

    /// The session: what it counted, and what cancels a step.
    pub fn session(&self) -> &Session<B> {
        &self.session
    }

    /// The same, to profile it or to start counting anew.
    pub fn session_mut(&mut self) -> &mut Session<B> {
        &mut self.session
    }

    /// Takes a request, to be served after those that came before.
    ///
    /// # Errors
    /// If its prompt is empty or too long, an option is out of range, or too many requests wait already.
    pub fn submit(&mut self, request: Request) -> Result<RequestId> {
        let id = RequestId(self.next);
        let model = self.session.model();
        let rules = Rules {
            vocab: model.spec.vocab_size,
            context: model.spec.context_length(),
            eos: &model.generation.eos_token_ids,
            tokenizer: self.tokenizer.as_ref(),
        };
        let mut running = Running::new(id, request, &rules)?;
        let prefix = self.kept_prefix(&running.tokens);
        let submitted = self.scheduler.submit(id, running.tokens.len() - prefix.map_or(0, |(_, len)| len));
        submitted.map_err(|full| Error::option("queue", full.to_string()))?;
        if let Some((sequence, len)) = prefix
            && let Err(error) = self.take_over(&mut running, sequence, len)
        {
            self.scheduler.cancel(id);
            return Err(error);
        }
        self.next += 1;
        self.requests.push(running);
        Ok(id)
    }

    /// The kept sequence that has most of the first tokens of a prompt, and how many; one is left to compute at least.
    fn kept_prefix(&self, prompt: &[u32]) -> Option<(usize, usize)> {
        let prefix = |&sequence: &usize| {
            let cached = self.session.tokens(sequence);
            let len = cached.iter().zip(&prompt[..prompt.len() - 1]).take_while(|(a, b)| a == b).count();
            // What a sparse cache has pruned cannot be taken back: it is of use whole or not at all.
            let usable = len > 0 && (len == cached.len() || self.session.kv().sparsity.is_none());
            (usable && !self.session.is_outdated(sequence, prompt.len())).then_some((sequence, len))
        };
        self.kept.iter().filter_map(prefix).max_by_key(|&(_, len)| len)
    }

    /// Gives a request a kept sequence, cut to `len` tokens.
    fn take_over(&mut self, request: &mut Running, sequence: usize, len: usize) -> Result<()> {
        self.session.grow(sequence, request.capacity())?;
        self.session.truncate(sequence, len)?;
        self.kept.retain(|&kept| kept != sequence);
        (request.sequence, request.cached) = (Some(sequence), len);
        Ok(())
    }

    /// Ends a request, whether it waits or runs; nothing if it has ended.
    ///
    /// # Errors
    /// If the tokenizer's decoder refuses the text that was held back.
    pub fn cancel(&mut self, request: RequestId) -> Result<()> {
        match self.requests.iter().any(|r| r.id == request) {
            true => self.end(request, Finish::Cancelled),
            false => Ok(()),
        }
    }

    /// Whether no request waits or runs, and nothing is left to be told.
    pub fn is_idle(&self) -> bool {
        self.scheduler.is_idle() && self.told.is_empty()
    }

    /// Slots without a request.
    pub fn free_slots(&self) -> usize {
        self.scheduler.free_slots()
    }

    /// One turn: schedule, step, update. Returns what happened; nothing if there is nothing to do.
    ///
    /// # Errors
    /// If weights cannot be read, or the work is cancelled: all requests are then what they were before, and can be tried again.
    pub fn step(&mut self) -> Result<Vec<Event>> {
        self.turn()?;
        Ok(self.told.drain(..).collect())
    }

    /// What happens to the requests, until all have ended.
    pub fn events(&mut self) -> impl Iterator<Item = Result<Event>> + '_ {
        std::iter::from_fn(move || {
            while self.told.is_empty() {
                if self.scheduler.is_idle() {
                    return None;
                }
                if let Err(error) = self.turn() {
                    return Some(Err(error));
                }
            }
            self.told.pop_front().map(Ok)
        })
    }

    fn turn(&mut self) -> Result<()> {
        if self.scheduler.is_idle() {
            return Ok(());
        }
        self.schedule()?;
        let sampled = self.run()?;
        self.update(sampled)
    }

    /// Decides on the next step, and gives every request in it a sequence.
    fn schedule(&mut self) -> Result<()> {
        self.restart_outdated()?;
        self.scheduler.schedule(&mut self.pieces);
        for piece in &self.pieces {
            let request = find(&mut self.requests, piece.request);
            if !request.has_begun() {
                let sequence = match request.sequence {
                    Some(taken_over) => taken_over,
                    None => self.session.add_sequence(request.capacity())?,
                };
                self.session.expect(sequence, request.tokens.len())?;
                request.begin(sequence);
            }
        }
        Ok(())
    }

    /// Makes prompts of the sequences that must be computed anew before they grow (LongRoPE), to be cut into steps as others are.
    fn restart_outdated(&mut self) -> Result<()> {
        for request in &self.requests {
            let Some(sequence) = request.sequence else { continue };
            let len = request.tokens.len();
            if self.session.is_outdated(sequence, len) {
                self.session.restart(sequence, len)?;
                self.scheduler.restart(request.id, len);
            }
        }
        Ok(())
    }

    /// Runs the step, and chooses the next token of every request whose prompt is complete, in parallel.
    fn run(&mut self) -> Result<Vec<(RequestId, Sampled)>> {
        let segment = |piece: &Piece| {
            let request = self.requests.iter().find(|r| r.id == piece.request).expect("scheduled requests are here");
            let sequence = request.sequence.expect("scheduled requests have a sequence");
            let from = self.session.len(sequence);
            let logits = if piece.samples { Logits::Last } else { Logits::None };
            Segment { sequence, tokens: &request.tokens[from..from + piece.tokens], logits }
        };
        let segments: Vec<Segment> = self.pieces.iter().map(segment).collect();
        let backend = self.session.backend().clone();
        let vocab = self.session.model().spec.vocab_size;
        let logits = self.session.step(&segments)?;

        let sampling = self.pieces.iter().filter(|piece| piece.samples).map(|piece| piece.request);
        let mut rows: Vec<(RequestId, &[f32])> = sampling.zip(logits.chunks_exact(vocab)).collect();
        rows.sort_unstable_by_key(|row| row.0);
        let requests = self.requests.iter_mut().filter(|r| rows.binary_search_by_key(&r.id, |row| row.0).is_ok());
        // Requests are in the order of their ids.
        let tasks: Vec<_> = requests.zip(&rows).map(|(r, (_, logits))| Mutex::new((r, *logits, None))).collect();
        backend.parallel(tasks.len(), &|i| {
            let (request, logits, sampled) = &mut *tasks[i].lock().expect("each is locked once");
            *sampled = Some(request.sample(logits));
        });
        let sampled = tasks.into_iter().filter_map(|task| {
            let (request, _, sampled) = task.into_inner().expect("each was locked once");
            Some((request.id, sampled?))
        });
        Ok(sampled.collect())
    }

    /// Tells what happened.
    fn update(&mut self, sampled: Vec<(RequestId, Sampled)>) -> Result<()> {
        self.pieces.iter().for_each(|&piece| self.scheduler.ran(piece));
        for (id, sampled) in sampled {
            let (event, finish) = find(&mut self.requests, id).accept(sampled)?;
            self.told.extend(event);
            if let Some(finish) = finish {
                self.end(id, finish)?;
            }
        }
        Ok(())
    }

    fn end(&mut self, id: RequestId, finish: Finish) -> Result<()> {
        self.scheduler.cancel(id);
        let at = self.requests.iter().position(|r| r.id == id).expect("it has not ended");
        let request = self.requests.remove(at);
        let stats = request.sequence.map(|sequence| self.session.take_stats(sequence)).transpose()?;
        if let Some(sequence) = request.sequence {
            self.kept.push(sequence);
        }
        while self.kept.len() > self.keep {
            self.session.remove_sequence(self.kept.remove(0))?;
        }
        self.told.push_back(request.finish(finish, stats.map_or(1.0, |stats| stats.active_fraction()))?);
        Ok(())
    }
}

fn find(requests: &mut [Running], id: RequestId) -> &mut Running {
    requests.iter_mut().find(|r| r.id == id).expect("scheduled requests are here")
}
