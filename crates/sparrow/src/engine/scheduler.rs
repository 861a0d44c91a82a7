//! Which tokens of which requests the next step computes: plain data in, plain data out; no model, no clock, no thread.
//!
//! A request holds a number of tokens that are known but not computed: its prompt at first, then the one token that was
//! sampled last. Nothing else tells a prompt from decoding. A step has room for `step_tokens` of them:
//! 1. **Every running request gets one token.** [`Limits`] sees to it that they fit. So a step never leaves out a sequence that
//!    decodes, nor a prompt that has begun: from one piece of a request to its next is always one step.
//! 2. What is left goes to running prompts, and then to waiting requests while slots are free, both in the order of arrival:
//!    the first takes all it can use, then the next. With `d` other requests running the oldest prompt gets at least
//!    `step_tokens - d` tokens in every step, or all it has.
//!
//! Scheduling changes nothing, only [what ran](Scheduler::ran) does: a step that failed is scheduled again as it was.

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;

use crate::error::{Error, Result};

/// A request, by a number that the caller gives and does not use twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(pub u64);

/// How much is served at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    slots: usize,
    step_tokens: usize,
    queue: usize,
}

impl Limits {
    /// `slots` requests run together, in steps of at most `step_tokens` tokens, while at most `queue` wait for a slot.
    ///
    /// Prompts advance by `step_tokens` less one for each other running request, so far more than `slots` is good for them,
    /// and few are good for the time between two tokens of everybody else.
    ///
    /// # Errors
    /// If there is no slot, or a step has less room than slots: some would have to be left out.
    pub fn new(slots: usize, step_tokens: usize, queue: usize) -> Result<Limits> {
        if slots == 0 {
            return Err(Error::option("slots", "must be 1 or above, found 0"));
        }
        if step_tokens < slots {
            let message = format!(
                "must be at least the number of slots, {slots}, for each running sequence gets a token in every step, found {step_tokens}"
            );
            return Err(Error::option("step_tokens", message));
        }
        Ok(Limits { slots, step_tokens, queue })
    }

    /// Requests that run together.
    pub fn slots(&self) -> usize {
        self.slots
    }

    /// Tokens of one step, at most.
    pub fn step_tokens(&self) -> usize {
        self.step_tokens
    }

    /// Requests that wait for a slot, at most.
    pub fn queue(&self) -> usize {
        self.queue
    }
}

/// Part of a step: the next tokens of one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// Whose tokens they are.
    pub request: RequestId,
    /// The slot the request has, or gets by this piece: below [`Limits::slots`], and its alone until it ends. What an earlier
    /// request left in a slot is stale.
    pub slot: usize,
    /// How many of the tokens that are not computed yet, from the first of them; at least 1.
    pub tokens: usize,
    /// Whether these are all of them, so that the last one's logits give the next token.
    pub samples: bool,
}

/// Every slot is taken or promised, and as many requests wait as may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{waiting} requests are waiting, as many as may: try again later")]
pub struct QueueFull {
    /// Requests that have no slot yet.
    pub waiting: usize,
}

/// Requests that run or wait, and how far each is.
#[derive(Debug)]
pub struct Scheduler {
    limits: Limits,
    /// All that have not ended, in the order of arrival.
    requests: Vec<Request>,
    /// Slots that no request has; the last is taken first.
    free: Vec<usize>,
}

#[derive(Debug)]
struct Request {
    id: RequestId,
    /// None while it waits.
    slot: Option<usize>,
    /// Tokens that are known and not computed; at least 1.
    pending: usize,
}

impl Scheduler {
    /// A scheduler without requests.
    pub fn new(limits: Limits) -> Scheduler {
        Scheduler { limits, requests: Vec::new(), free: (0..limits.slots).rev().collect() }
    }

    /// Takes a request with a prompt of `prompt_tokens`, to be served after all that came before.
    ///
    /// # Errors
    /// If as many requests wait already as may, beside those that the free slots are for.
    ///
    /// # Panics
    /// If the prompt is empty, or the id is that of a request that has not ended.
    pub fn submit(&mut self, request: RequestId, prompt_tokens: usize) -> std::result::Result<(), QueueFull> {
        assert!(prompt_tokens > 0, "{request:?} has no prompt");
        assert!(self.position(request).is_none(), "{request:?} is here already");
        if self.waiting() >= self.limits.queue.saturating_add(self.free.len()) {
            return Err(QueueFull { waiting: self.waiting() });
        }
        self.requests.push(Request { id: request, slot: None, pending: prompt_tokens });
        Ok(())
    }

    /// The next step, into `pieces`: single tokens first, then running prompts, then requests that start, each in the order of
    /// arrival. Empty if there is nothing to do.
    pub fn schedule(&self, pieces: &mut Vec<Piece>) {
        pieces.clear();
        let mut left = self.limits.step_tokens - self.running();
        let running = || self.requests.iter().filter_map(|r| Some((r, r.slot?)));
        for (r, slot) in running().filter(|(r, _)| r.pending == 1) {
            pieces.push(r.piece(slot, 1));
        }
        for (r, slot) in running().filter(|(r, _)| r.pending > 1) {
            let more = left.min(r.pending - 1);
            left -= more;
            pieces.push(r.piece(slot, 1 + more));
        }
        let waiting = self.requests.iter().filter(|r| r.slot.is_none());
        for (r, &slot) in waiting.zip(self.free.iter().rev()) {
            let tokens = left.min(r.pending);
            if tokens == 0 {
                break;
            }
            left -= tokens;
            pieces.push(r.piece(slot, tokens));
        }
    }

    /// A piece of the last schedule was computed. If the request has ended meanwhile, nothing happens; if the piece
    /// [`samples`](Piece::samples), the request has one token more to compute from now on, unless it is [finished](Self::finish).
    ///
    /// # Panics
    /// If the piece is of another schedule than the last.
    pub fn ran(&mut self, piece: Piece) {
        let Some(at) = self.position(piece.request) else {
            return;
        };
        let request = &mut self.requests[at];
        assert!(piece.tokens <= request.pending, "{piece:?} of a request with {} tokens to compute", request.pending);
        request.pending = (request.pending - piece.tokens).max(1);
        if request.slot.is_none() {
            let free = self.free.iter().position(|&slot| slot == piece.slot);
            self.free.remove(free.expect("the slot of a piece is free until it ran"));
            request.slot = Some(piece.slot);
        }
    }

    /// What was computed of a running request is void, and its first `tokens` must be computed, as a prompt (LongRoPE, when a sequence
    /// outgrows its original length). It keeps its slot and its place in the order of arrival.
    ///
    /// # Panics
    /// If the request does not run, or there is no token.
    pub fn restart(&mut self, request: RequestId, tokens: usize) {
        assert!(tokens > 0, "{request:?} restarts without tokens");
        let at = self.position(request).filter(|&at| self.requests[at].slot.is_some());
        self.requests[at.unwrap_or_else(|| panic!("{request:?} does not run"))].pending = tokens;
    }

    /// Ends a running request that is complete; its slot, which is returned, is free at once.
    ///
    /// # Panics
    /// If the request does not run.
    pub fn finish(&mut self, request: RequestId) -> usize {
        self.cancel(request).unwrap_or_else(|| panic!("{request:?} does not run"))
    }

    /// Ends a request, whether it waits, runs or has ended before; its slot, which is returned if it had one, is free at once.
    pub fn cancel(&mut self, request: RequestId) -> Option<usize> {
        let at = self.position(request)?;
        let slot = self.requests.remove(at).slot?;
        self.free.push(slot);
        Some(slot)
    }

    /// Requests without a slot.
    pub fn waiting(&self) -> usize {
        self.requests.len() - self.running()
    }

    /// Requests with a slot.
    pub fn running(&self) -> usize {
        self.limits.slots - self.free.len()
    }

    /// Slots without a request.
    pub fn free_slots(&self) -> usize {
        self.free.len()
    }

    /// Whether no request waits or runs.
    pub fn is_idle(&self) -> bool {
        self.requests.is_empty()
    }

    fn position(&self, request: RequestId) -> Option<usize> {
        self.requests.iter().position(|r| r.id == request)
    }
}

impl Request {
    fn piece(&self, slot: usize, tokens: usize) -> Piece {
        Piece { request: self.id, slot, tokens, samples: tokens == self.pending }
    }
}
