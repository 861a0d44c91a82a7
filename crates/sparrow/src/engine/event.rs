//! What an engine tells of its requests.

use std::time::Duration;

use super::scheduler::RequestId;
use crate::text::sample::Sampled;

/// Something happened to a request.
#[derive(Debug, Clone)]
pub enum Event {
    /// It got its next token.
    Token {
        /// Whose it is.
        request: RequestId,
        /// The id; an end-of-sequence id too.
        token: u32,
        /// Text that is settled by it: empty while a character or a stop string may be incomplete.
        text: String,
        /// Where they were asked for.
        logprobs: Option<Sampled>,
    },
    /// It ended; the last event of a request, and the only one of its kind.
    Finished {
        /// Which.
        request: RequestId,
        /// Why.
        finish: Finish,
        /// Text that was held back: it turned out to be none of a stop string, or no more tokens came to change it. A character that
        /// is not complete is U+FFFD.
        text: String,
        /// What it took.
        usage: Usage,
    },
}

/// Why a request ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finish {
    /// The model produced one of its end-of-sequence ids, or of the request's.
    EndOfSequence,
    /// The text contained this stop string.
    StopString(String),
    /// As many tokens were generated as were asked for.
    MaxNewTokens,
    /// The context of the model has no room left.
    ContextFull,
    /// It was cancelled.
    Cancelled,
}

/// What a request took.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Those of them that were not computed: a [kept](super::EngineOptions::kept) sequence began with them.
    pub cached_tokens: usize,
    /// Tokens generated, an end-of-sequence id included.
    pub new_tokens: usize,
    /// From the first step that computed its prompt to its first token; `None` if it got none.
    pub time_to_first_token: Option<Duration>,
    /// From the first token to the last.
    pub decode_time: Duration,
    /// Active ÷ all of what a selector leaves out, averaged over its tokens.
    pub active_fraction: f64,
}

impl Usage {
    /// Prompt tokens computed per second until the first token; 0 without one.
    pub fn prefill_tokens_per_second(&self) -> f64 {
        let computed = self.prompt_tokens - self.cached_tokens;
        self.time_to_first_token.map_or(0.0, |time| computed as f64 / time.as_secs_f64())
    }

    /// Tokens after the first per second; 0 if there are none.
    pub fn decode_tokens_per_second(&self) -> f64 {
        match self.new_tokens {
            0 | 1 => 0.0,
            n => (n - 1) as f64 / self.decode_time.as_secs_f64(),
        }
    }
}
