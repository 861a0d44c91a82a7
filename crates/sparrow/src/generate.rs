//! Text generation: prefill, then one token at a time until something says stop.

use std::time::{Duration, Instant};

use crate::error::Result;
use crate::model::Session;
use crate::sample::{SampleOptions, Sampler};
use crate::tokenizer::Tokenizer;

/// What to generate and when to stop.
#[derive(Debug, Clone, Default)]
pub struct GenerateOptions {
    /// How tokens are chosen.
    pub sample: SampleOptions,
    /// Tokens to generate at most.
    pub max_new_tokens: usize,
    /// Texts that end generation; they are not part of the output.
    pub stop: Vec<String>,
}

/// Why generation ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StopReason {
    /// The model produced one of its end-of-sequence ids.
    EndOfSequence,
    /// The text contained this stop string.
    StopString(String),
    /// `max_new_tokens` were generated.
    MaxNewTokens,
    /// The session has no room left.
    ContextFull,
}

/// What was generated, and how long it took.
#[derive(Debug, Clone)]
pub struct Generated {
    /// New ids, an end-of-sequence id included.
    pub ids: Vec<u32>,
    /// Why it ended.
    pub reason: StopReason,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// From the call to the first token: prefill and one sample.
    pub time_to_first_token: Duration,
    /// From the first token to the last.
    pub decode_time: Duration,
}

impl Generated {
    /// Prompt tokens per second.
    pub fn prefill_tokens_per_second(&self) -> f64 {
        self.prompt_tokens as f64 / self.time_to_first_token.as_secs_f64()
    }

    /// Tokens after the first per second; 0 if there are none.
    pub fn decode_tokens_per_second(&self) -> f64 {
        match self.ids.len() {
            0 | 1 => 0.0,
            n => (n - 1) as f64 / self.decode_time.as_secs_f64(),
        }
    }
}

/// Continues `prompt` in `sequence` of the session (what it has cached comes before the prompt); `emit` gets the text as
/// it is settled and says whether to go on.
///
/// # Errors
/// If the prompt is empty or does not fit, an option is out of range, or `emit` fails.
pub fn generate(
    session: &mut Session,
    sequence: usize,
    tokenizer: &Tokenizer,
    prompt: &[u32],
    options: &GenerateOptions,
    mut emit: impl FnMut(&str) -> Result<()>,
) -> Result<Generated> {
    let eos = session.model().generation.eos_token_ids.clone();
    let mut sampler = Sampler::new(options.sample.clone(), session.model().spec.vocab_size)?;
    sampler.accept_prompt(prompt);
    let mut text = StopText::new(&options.stop);
    let mut stream = tokenizer.stream(prompt)?;
    let mut ids = Vec::with_capacity(options.max_new_tokens.min(session.capacity()));

    let start = Instant::now();
    let mut token = sampler.sample(session.prefill(sequence, prompt)?);
    let first = Instant::now();
    let reason = loop {
        if ids.len() >= options.max_new_tokens {
            break StopReason::MaxNewTokens;
        }
        ids.push(token);
        sampler.accept(token);
        if eos.contains(&token) {
            break StopReason::EndOfSequence;
        }
        let (settled, stopped) = text.push(&stream.push(token)?);
        emit(&settled)?;
        if let Some(stop) = stopped {
            break StopReason::StopString(stop);
        }
        if ids.len() >= options.max_new_tokens {
            break StopReason::MaxNewTokens;
        }
        if session.len(sequence) >= session.capacity() {
            break StopReason::ContextFull;
        }
        token = sampler.sample(session.decode(&[(sequence, token)])?);
    };
    let decode_time = first.elapsed();
    emit(&text.rest(&reason))?;
    let (prompt_tokens, time_to_first_token) = (prompt.len(), first - start);
    Ok(Generated { ids, reason, prompt_tokens, time_to_first_token, decode_time })
}

/// Holds back text that may be the beginning of a stop string.
struct StopText<'a> {
    stop: &'a [String],
    held: String,
}

impl<'a> StopText<'a> {
    fn new(stop: &'a [String]) -> Self {
        StopText { stop, held: String::new() }
    }

    /// Text that is settled after `piece`, and the stop string that was completed, if one was.
    fn push(&mut self, piece: &str) -> (String, Option<String>) {
        self.held.push_str(piece);
        let found = |stop: &&String| self.held.find(stop.as_str()).map(|at| (at, (*stop).clone()));
        let first = self.stop.iter().filter(|s| !s.is_empty()).filter_map(|s| found(&s)).min_by_key(|f| f.0);
        if let Some((at, stop)) = first {
            self.held.truncate(at);
            return (std::mem::take(&mut self.held), Some(stop));
        }
        let suffixes = self.held.char_indices().map(|(i, _)| i);
        let open = suffixes.into_iter().find(|&i| self.stop.iter().any(|s| s.starts_with(&self.held[i..])));
        let rest = self.held.split_off(open.unwrap_or(self.held.len()));
        (std::mem::replace(&mut self.held, rest), None)
    }

    /// What was held back and turned out to be text.
    fn rest(&mut self, reason: &StopReason) -> String {
        match reason {
            StopReason::StopString(_) => String::new(),
            _ => std::mem::take(&mut self.held),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(stop: &[&str], pieces: &[&str]) -> (String, Option<String>) {
        let stop: Vec<String> = stop.iter().map(|s| s.to_string()).collect();
        let mut text = StopText::new(&stop);
        let mut out = String::new();
        for piece in pieces {
            let (settled, stopped) = text.push(piece);
            out.push_str(&settled);
            if stopped.is_some() {
                return (out, stopped);
            }
        }
        out.push_str(&text.rest(&StopReason::MaxNewTokens));
        (out, None)
    }

    #[test]
    fn stop_strings_across_pieces() {
        assert_eq!(run(&["END"], &["a E", "N", "D b"]), ("a ".into(), Some("END".into())));
        assert_eq!(run(&["END"], &["a E", "N", "d b"]), ("a ENd b".into(), None));
        assert_eq!(run(&["END"], &["a EEN", "D"]), ("a E".into(), Some("END".into())));
        assert_eq!(run(&["xy", "y"], &["ax", "y"]), ("a".into(), Some("xy".into())));
        assert_eq!(run(&["é!"], &["caf", "é", "s"]), ("cafés".into(), None));
        assert_eq!(run(&[], &["a", "b"]), ("ab".into(), None));
        assert_eq!(run(&["END"], &["a EN"]), ("a EN".into(), None));
    }
}
