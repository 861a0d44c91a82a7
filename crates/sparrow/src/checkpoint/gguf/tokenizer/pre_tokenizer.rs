//! How text is split into words before byte pairs are merged, by the names that llama.cpp gives the ways.

use serde_json::{Value, json};

use crate::checkpoint::gguf::value::Metadata;
use crate::error::Result;

const KEY: &str = "tokenizer.ggml.pre";

/// A way to split.
pub(super) struct PreTokenizer {
    /// What files call it.
    names: &'static [&'static str],
    split: Split,
    /// A word that is a token is not split further.
    pub whole_words: bool,
    /// Text is brought to normal form C first.
    pub composes: bool,
    /// Texts begin with the beginning-of-sequence token where the file does not say.
    pub adds_bos: bool,
}

#[derive(Clone, Copy)]
enum Split {
    /// By this pattern.
    Pattern(&'static str),
    /// By several, one after another, then into digits.
    Patterns(&'static [&'static str]),
    /// By GPT-2's pattern.
    Gpt2,
    /// Into digits, then by GPT-2's pattern.
    DigitsGpt2,
}

const PLAIN: PreTokenizer =
    PreTokenizer { names: &[], split: Split::Gpt2, whole_words: false, composes: false, adds_bos: false };

const ALL: [PreTokenizer; 8] = [
    PreTokenizer {
        names: &["default", "gpt-2", "gpt2", "olmo", "phi-2", "mpt", "jais", "roberta-bpe", "trillion", "gigachat"],
        ..PLAIN
    },
    PreTokenizer {
        names: &["smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"],
        split: Split::DigitsGpt2,
        ..PLAIN
    },
    PreTokenizer {
        names: &["llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "midm-2.0", "lfm2"],
        split: Split::Pattern(LLAMA3),
        whole_words: true,
        adds_bos: true,
        ..PLAIN
    },
    PreTokenizer { names: &["dbrx", "smaug-bpe"], split: Split::Pattern(LLAMA3), ..PLAIN },
    PreTokenizer {
        names: &["qwen2", "deepseek-r1-qwen", "stablelm2", "hunyuan", "megrez"],
        split: Split::Pattern(QWEN2),
        composes: true,
        ..PLAIN
    },
    PreTokenizer { names: &["tekken"], split: Split::Pattern(TEKKEN), whole_words: true, adds_bos: true, ..PLAIN },
    PreTokenizer { names: &["gpt-4o", "llama4"], split: Split::Pattern(GPT4O), ..PLAIN },
    PreTokenizer { names: &["deepseek-coder"], split: Split::Patterns(&DEEPSEEK_CODER), ..PLAIN },
];

const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const GPT4O: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const DEEPSEEK_CODER: [&str; 4] = [r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", r"[一-龥ࠀ-一가-퟿]+"];

impl PreTokenizer {
    /// The one that a file names.
    ///
    /// # Errors
    /// Names it, if it is not known: with another one the tokens would be wrong without a word.
    pub fn of(metadata: &Metadata) -> Result<&'static Self> {
        static WAYS: [PreTokenizer; ALL.len()] = ALL;
        // Files from before there were names are GPT-2's.
        let name = metadata.str(KEY)?.unwrap_or("default");
        WAYS.iter().find(|way| way.names.contains(&name)).ok_or_else(|| {
            let known: Vec<_> = WAYS.iter().flat_map(|way| way.names).copied().collect();
            let message =
                format!("is {name:?}, a way to split text into words that is not known; known: {}", known.join(", "));
            metadata.error(KEY, message)
        })
    }

    /// As `tokenizer.json` has it.
    pub fn json(&self) -> Value {
        let bytes = |use_regex: bool| json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex });
        let by = |pattern: &str| json!({ "type": "Split", "pattern": { "Regex": pattern }, "behavior": "Isolated", "invert": false });
        let digits = json!({ "type": "Digits", "individual_digits": true });
        let steps = match self.split {
            Split::Gpt2 => return bytes(true),
            Split::DigitsGpt2 => vec![digits, bytes(true)],
            Split::Pattern(pattern) => vec![by(pattern), bytes(false)],
            Split::Patterns(patterns) => patterns.iter().map(|p| by(p)).chain([digits, bytes(false)]).collect(),
        };
        json!({ "type": "Sequence", "pretokenizers": steps })
    }
}
