//! Tokens to text as they come: the steps of a tokenizer's decoder, each holding back what later tokens may change.

use tokenizers::decoders::strip::Strip;
use tokenizers::{Decoder, DecoderWrapper};

const REPLACEMENT: &str = "\u{fffd}";

/// A decoder in the middle of its work.
#[derive(Clone)]
pub struct Decoding {
    steps: Vec<Step>,
}

#[derive(Clone)]
enum Step {
    /// Changes every token by itself.
    Each(DecoderWrapper),
    /// Likewise, but for the first, which is another case.
    First { decoder: DecoderWrapper, begun: bool },
    /// Puts spaces between tokens.
    Spaces { begun: bool },
    /// Makes a text of tokens that are single bytes.
    Bytes(ByteRun),
    /// Makes a text of tokens that spell their bytes; the bytes of a character that is not complete.
    Utf8(Vec<u8>),
    /// Takes a character away from the beginning of the text, so often at most.
    StripStart { content: char, left: usize },
    /// Anything else, which may need to see all tokens.
    Whole { decoders: Vec<DecoderWrapper>, tokens: Vec<String> },
}

impl Decoding {
    /// At the beginning of a text.
    pub fn new(decoder: Option<&DecoderWrapper>) -> Self {
        let Some(decoder) = decoder else { return Decoding { steps: vec![Step::Spaces { begun: false }] } };
        let decoders = flat(decoder);
        let mut steps = Vec::new();
        // Whether what came before makes one token of all.
        let mut fused = false;
        for (i, decoder) in decoders.iter().enumerate() {
            match decoder {
                DecoderWrapper::Fuse(_) => fused = true,
                DecoderWrapper::ByteLevel(_) if !fused => {
                    steps.push(Step::Utf8(Vec::new()));
                    fused = true;
                }
                DecoderWrapper::ByteFallback(_) if !fused => steps.push(Step::Bytes(ByteRun::default())),
                DecoderWrapper::Replace(_) | DecoderWrapper::Strip(_) if !fused => {
                    steps.push(Step::Each(decoder.clone()));
                }
                DecoderWrapper::Metaspace(_) | DecoderWrapper::WordPiece(_) if !fused => {
                    steps.push(Step::First { decoder: decoder.clone(), begun: false });
                }
                &DecoderWrapper::Strip(Strip { content, start, stop: 0, .. }) => {
                    steps.push(Step::StripStart { content, left: start });
                }
                _ => {
                    let fuse = fused.then(|| DecoderWrapper::Fuse(Default::default()));
                    let decoders = fuse.into_iter().chain(decoders[i..].iter().cloned()).collect();
                    steps.push(Step::Whole { decoders, tokens: Vec::new() });
                    break;
                }
            }
        }
        Decoding { steps }
    }

    /// The text that is settled by the next token.
    pub fn push(&mut self, token: String) -> tokenizers::Result<String> {
        let tokens = self.steps.iter_mut().try_fold(vec![token], |tokens, step| step.push(tokens))?;
        Ok(tokens.concat())
    }

    /// The text that was held back: there are no more tokens.
    pub fn finish(&mut self) -> tokenizers::Result<String> {
        let tokens = self.steps.iter_mut().try_fold(Vec::new(), |tokens, step| {
            let mut tokens = step.push(tokens)?;
            tokens.extend(step.finish()?);
            Ok::<_, tokenizers::Error>(tokens)
        })?;
        Ok(tokens.concat())
    }

    /// Bytes that are held back although they are a text, because later ones may belong to it.
    pub fn held_text(&self) -> &[u8] {
        let run = self.steps.iter().find_map(|step| match step {
            Step::Bytes(run) => Some(run),
            _ => None,
        });
        run.map_or(&[], |run| if run.is_text() { &run.bytes } else { &[] })
    }
}

/// The decoders that a sequence, or a sequence in it, runs one after the other.
fn flat(decoder: &DecoderWrapper) -> Vec<DecoderWrapper> {
    match decoder {
        DecoderWrapper::Sequence(sequence) => sequence.get_decoders().iter().flat_map(flat).collect(),
        other => vec![other.clone()],
    }
}

impl Step {
    /// What `tokens` become, as far as it is settled.
    fn push(&mut self, tokens: Vec<String>) -> tokenizers::Result<Vec<String>> {
        Ok(match self {
            _ if tokens.is_empty() => tokens,
            Step::Each(decoder) => decoder.decode_chain(tokens)?,
            Step::First { decoder, begun: false } => {
                let decoded = decoder.decode_chain(tokens)?;
                *self = Step::First { decoder: decoder.clone(), begun: true };
                decoded
            }
            Step::First { decoder, begun: true } => {
                let after_first = std::iter::once(String::new()).chain(tokens).collect();
                decoder.decode_chain(after_first)?.split_off(1)
            }
            Step::Spaces { begun } => {
                let space = |token| if std::mem::replace(begun, true) { format!(" {token}") } else { token };
                tokens.into_iter().map(space).collect()
            }
            Step::Bytes(run) => tokens.into_iter().flat_map(|token| run.push(token)).collect(),
            Step::Utf8(open) => {
                tokens.iter().for_each(|token| open.extend(bytes_of(token)));
                vec![take_complete(open)]
            }
            Step::StripStart { content, left } => {
                let strip = |token: String| {
                    let rest = token.trim_start_matches(|c| {
                        let strips = *left > 0 && c == *content;
                        *left = if strips { *left - 1 } else { 0 };
                        strips
                    });
                    rest.to_owned()
                };
                tokens.into_iter().map(strip).collect()
            }
            Step::Whole { tokens: held, .. } => {
                held.extend(tokens);
                Vec::new()
            }
        })
    }

    /// What was held back.
    fn finish(&mut self) -> tokenizers::Result<Vec<String>> {
        Ok(match self {
            Step::Bytes(run) => run.take().into_iter().collect(),
            Step::Utf8(open) => vec![String::from_utf8_lossy(&std::mem::take(open)).into_owned()],
            Step::Whole { decoders, tokens } => {
                let tokens = std::mem::take(tokens);
                decoders.iter().try_fold(tokens, |tokens, decoder| decoder.decode_chain(tokens))?
            }
            _ => Vec::new(),
        })
    }
}

/// Byte tokens in a row. They are a text together or not at all: one wrong byte makes U+FFFD of each.
#[derive(Clone, Default)]
struct ByteRun {
    bytes: Vec<u8>,
    /// How many of them are known to be a text.
    valid: usize,
}

impl ByteRun {
    /// What is settled by the next token.
    fn push(&mut self, token: String) -> Vec<String> {
        let hex = token.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>')).filter(|hex| hex.len() == 2);
        match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            None => self.take().into_iter().chain([token]).collect(),
            Some(byte) => {
                self.bytes.push(byte);
                // No character has more than four bytes: a run that is wrong is not read again and again.
                if self.bytes.len() - self.valid <= 4
                    && let Ok(character) = std::str::from_utf8(&self.bytes[self.valid..])
                {
                    self.valid += character.len();
                }
                Vec::new()
            }
        }
    }

    fn is_text(&self) -> bool {
        self.valid == self.bytes.len()
    }

    /// The text of the run, which is over.
    fn take(&mut self) -> Option<String> {
        let ByteRun { bytes, .. } = std::mem::take(self);
        let count = bytes.len();
        (count > 0).then(|| String::from_utf8(bytes).unwrap_or_else(|_| REPLACEMENT.repeat(count)))
    }
}

/// The bytes that a token of a byte-level vocabulary spells: a character for each.
fn bytes_of(token: &str) -> Vec<u8> {
    // The characters of bytes that have none of their own, from U+0100 on, in the order of the bytes.
    let byte = |c: char| match c {
        '!'..='~' | '¡'..='¬' | '®'..='ÿ' => Some(c as u8),
        '\u{100}'..='\u{120}' => Some((c as u32 - 0x100) as u8),
        '\u{121}'..='\u{142}' => Some((c as u32 - 0x121 + 0x7f) as u8),
        '\u{143}' => Some(0xad),
        _ => None,
    };
    token.chars().map(byte).collect::<Option<_>>().unwrap_or_else(|| token.as_bytes().to_vec())
}

/// Takes the text from `open` but for the beginning of a character that is not complete.
fn take_complete(open: &mut Vec<u8>) -> String {
    let last = open.utf8_chunks().last().map_or(0, |chunk| {
        let invalid = chunk.invalid();
        match std::str::from_utf8(invalid) {
            Err(e) if e.error_len().is_none() => invalid.len(),
            _ => 0,
        }
    });
    let rest = open.split_off(open.len() - last);
    String::from_utf8_lossy(&std::mem::replace(open, rest)).into_owned()
}

#[cfg(test)]
mod tests {
    use tokenizers::decoders::byte_level::ByteLevel;

    use super::*;

    /// What comes as the tokens come, and at the end, after each of which nothing that was told may change.
    fn decode(decoder: &str, tokens: &[&str]) -> Vec<String> {
        let decoder: DecoderWrapper = serde_json::from_str(decoder).unwrap();
        let mut decoding = Decoding::new(Some(&decoder));
        let mut pieces: Vec<String> = tokens.iter().map(|token| decoding.push(token.to_string()).unwrap()).collect();
        pieces.push(decoding.finish().unwrap());
        let whole = decoder.decode(tokens.iter().map(|token| token.to_string()).collect()).unwrap();
        assert_eq!(pieces.concat(), whole, "{tokens:?}");
        pieces
    }

    #[test]
    fn every_byte_has_its_character() {
        let decoder = DecoderWrapper::ByteLevel(ByteLevel::default());
        for c in ByteLevel::alphabet() {
            let text = decoder.decode(vec![c.to_string()]).unwrap();
            assert_eq!(String::from_utf8_lossy(&bytes_of(&c.to_string())), text, "{c:?}");
        }
        let bytes: std::collections::BTreeSet<Vec<u8>> =
            ByteLevel::alphabet().into_iter().map(|c| bytes_of(&c.to_string())).collect();
        assert_eq!(bytes.len(), 256);
        assert_eq!(bytes_of("日本"), "日本".as_bytes());
    }

    #[test]
    fn steps_hold_back_what_may_change() {
        let llama = r#"{"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}]}"#;
        assert_eq!(decode(llama, &["▁", "▁a", "<0xC3>", "<0xA9>", "b"]), ["", " a", "", "", "éb", ""]);
        assert_eq!(decode(llama, &["<0x08>", "<0xFF>", "▁"]), ["", "", "\u{fffd}\u{fffd} ", ""]);
        assert_eq!(decode(llama, &["<0x20>", "<0xE0>"]), ["", "", "\u{fffd}\u{fffd}"]);
        let byte_level = r#"{"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true}"#;
        assert_eq!(
            decode(byte_level, &["Ġa", "Ã", "©", "ÿ", "à¸", "b", "à"]),
            [" a", "", "é", "\u{fffd}", "", "\u{fffd}b", "", "\u{fffd}"]
        );
        let metaspace = r#"{"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true}"#;
        assert_eq!(decode(metaspace, &["▁a", "▁b", "c"]), ["a", " b", "c", ""]);
        let word_piece = r###"{"type": "WordPiece", "prefix": "##", "cleanup": true}"###;
        assert_eq!(decode(word_piece, &["it", "##s", "me", "."]), ["it", "s", " me", ".", ""]);
        let bpe = r#"{"type": "BPEDecoder", "suffix": "</w>"}"#;
        assert_eq!(decode(bpe, &["a</w>", "b</w>"]), ["", "", "a b"]);
        let replaced = r#"{"type": "Sequence", "decoders": [{"type": "Fuse"},
            {"type": "Replace", "pattern": {"String": "ab"}, "content": "c"}]}"#;
        assert_eq!(decode(replaced, &["a", "b"]), ["", "", "c"]);
    }

    #[test]
    fn long_runs_are_read_once() {
        let decoder = r#"{"type": "ByteFallback"}"#;
        let character = ["<0xE0>", "<0xB8>", "<0x81>"];
        let good: Vec<&str> = character.into_iter().cycle().take(30_000).collect();
        assert_eq!(decode(decoder, &good).concat(), "ก".repeat(10_000));
        let bad: Vec<&str> = std::iter::once("<0xFF>").chain(good).collect();
        assert_eq!(decode(decoder, &bad).concat(), "\u{fffd}".repeat(30_001));
    }
}
