//! A request that an engine has: its tokens so far, and what its next one means.

use std::sync::Arc;
use std::time::Instant;

use super::event::{Event, Finish, Usage};
use super::request::Request;
use super::scheduler::RequestId;
use crate::error::{Error, Result};
use crate::run::check_ids;
use crate::text::sample::{Sampled, Sampler};
use crate::text::{Tokenizer, Written};

/// A request that waits or runs.
pub struct Running {
    pub id: RequestId,
    /// Prompt, then what was generated.
    pub tokens: Vec<u32>,
    /// Its sequence in the session, once it runs or took over one that was kept.
    pub sequence: Option<usize>,
    /// Tokens of the prompt that its sequence came with.
    pub cached: usize,
    prompt_tokens: usize,
    max_new_tokens: usize,
    /// What the model's context has room for.
    context: usize,
    eos: Vec<u32>,
    logprobs: bool,
    sampler: Sampler,
    /// None without a tokenizer.
    text: Option<Written>,
    begun: Option<Instant>,
    first: Option<Instant>,
    last: Option<Instant>,
}

/// What a model says of its requests.
pub struct Rules<'a> {
    pub vocab: usize,
    pub context: usize,
    pub eos: &'a [u32],
    /// None: no text is made, and stop strings are refused.
    pub tokenizer: Option<&'a Arc<Tokenizer>>,
}

impl Running {
    /// Checks a request.
    ///
    /// # Errors
    /// If the prompt is empty, leaves no room in the context or has an id outside the vocabulary, or an option is out of range.
    pub fn new(id: RequestId, request: Request, rules: &Rules) -> Result<Self> {
        let Request { prompt, sample, max_new_tokens, stop, ignore_eos, stop_tokens, logprobs } = request;
        let &Rules { vocab, context, eos, tokenizer } = rules;
        if prompt.is_empty() {
            return Err(Error::option("prompt", "has no tokens"));
        }
        if prompt.len() >= context {
            // One position must be left for the first new token.
            return Err(Error::ContextLength { needed: prompt.len() + 1, context });
        }
        check_ids(&prompt, vocab)?;
        if tokenizer.is_none() && !stop.is_empty() {
            return Err(Error::option("stop", "needs a tokenizer"));
        }
        let mut sampler = Sampler::new(sample, vocab)?;
        sampler.accept_prompt(&prompt);
        let text = tokenizer.map(|tokenizer| Written::new(tokenizer.clone(), &prompt, stop)).transpose()?;
        Ok(Running {
            id,
            prompt_tokens: prompt.len(),
            tokens: prompt,
            sequence: None,
            cached: 0,
            max_new_tokens,
            context,
            eos: [if ignore_eos { &[] } else { eos }, &stop_tokens].concat(),
            logprobs,
            sampler,
            text,
            begun: None,
            first: None,
            last: None,
        })
    }

    /// Tokens that its sequence may come to.
    pub fn capacity(&self) -> usize {
        self.prompt_tokens.saturating_add(self.max_new_tokens).min(self.context)
    }

    /// Whether some of its prompt was computed.
    pub fn has_begun(&self) -> bool {
        self.begun.is_some()
    }

    /// Its prompt is about to be computed.
    pub fn begin(&mut self, sequence: usize) {
        self.sequence = Some(sequence);
        self.begun = Some(Instant::now());
    }

    /// Chooses the next token from its logits.
    pub fn sample(&mut self, logits: &[f32]) -> Sampled {
        match self.logprobs {
            true => self.sampler.sample_with_logprobs(logits),
            false => Sampled { token: self.sampler.sample(logits), logprob: 0.0, top: Vec::new() },
        }
    }

    /// Takes the token that was chosen: what is told of it, and why it is the last, if it is.
    ///
    /// # Errors
    /// If the tokenizer's decoder refuses it.
    pub fn accept(&mut self, sampled: Sampled) -> Result<(Option<Event>, Option<Finish>)> {
        let now = Instant::now();
        self.first.get_or_insert(now);
        self.last = Some(now);
        if self.max_new_tokens == 0 {
            return Ok((None, Some(Finish::MaxNewTokens)));
        }
        let token = sampled.token;
        self.tokens.push(token);
        self.sampler.accept(token);
        let ended = self.eos.contains(&token);
        let (text, stopped) = match &mut self.text {
            Some(text) if !ended => text.push(token)?,
            _ => (String::new(), None),
        };
        let finish = if ended {
            Some(Finish::EndOfSequence)
        } else if let Some(stop) = stopped {
            Some(Finish::StopString(stop))
        } else if self.new_tokens() >= self.max_new_tokens {
            Some(Finish::MaxNewTokens)
        } else if self.tokens.len() > self.context {
            Some(Finish::ContextFull)
        } else {
            None
        };
        let logprobs = self.logprobs.then_some(sampled);
        Ok((Some(Event::Token { request: self.id, token, text, logprobs }), finish))
    }

    /// The last that is told of it.
    ///
    /// # Errors
    /// If the tokenizer's decoder refuses what was held back.
    pub fn finish(mut self, finish: Finish, active_fraction: f64) -> Result<Event> {
        let (text, stopped) = match (&finish, &mut self.text) {
            (Finish::StopString(_), _) | (_, None) => (String::new(), None),
            (_, Some(text)) => text.finish()?,
        };
        let finish = stopped.map_or(finish, Finish::StopString);
        let usage = Usage {
            prompt_tokens: self.prompt_tokens,
            cached_tokens: self.cached,
            new_tokens: self.new_tokens(),
            time_to_first_token: self.first.zip(self.begun).map(|(first, begun)| first - begun),
            decode_time: self.last.zip(self.first).map_or_else(Default::default, |(last, first)| last - first),
            active_fraction,
        };
        Ok(Event::Finished { request: self.id, finish, text, usage })
    }

    fn new_tokens(&self) -> usize {
        self.tokens.len() - self.prompt_tokens
    }
}
