//! Text as it comes is the text of all ids.

use std::sync::Arc;

use proptest::prelude::*;
use sparrow::Tokenizer;
use sparrow::internals::text::{TextStream, Written};

use super::tokenizers;

/// What a stream tells of `ids` after `prompt`, at the end too.
fn streamed(tokenizer: &Arc<Tokenizer>, prompt: &[u32], ids: &[u32]) -> String {
    let mut stream = TextStream::new(tokenizer.clone(), prompt).unwrap();
    let mut text: String = ids.iter().map(|&id| stream.push(id).unwrap()).collect();
    text.push_str(&stream.finish().unwrap());
    text
}

/// What `whole` adds to `beginning`: all that they do not have in common.
fn added<'a>(whole: &'a str, beginning: &str) -> &'a str {
    let common = whole.chars().zip(beginning.chars()).take_while(|(a, b)| a == b).map(|(a, _)| a.len_utf8()).sum();
    &whole[common..]
}

/// Ids that spell single bytes or parts of characters, where the tokenizer has them.
fn odd_ids(tokenizer: &Tokenizer) -> Vec<u32> {
    let ids = 0..tokenizer.vocab_size() as u32;
    let odd = |&id: &u32| {
        let byte = tokenizer.id_to_token(id).is_some_and(|token| token.starts_with("<0x"));
        byte || tokenizer.decode(&[id]).unwrap().contains('\u{fffd}')
    };
    ids.filter(odd).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// Any ids: text, special tokens, bytes in any order, ids that there are not.
    #[test]
    fn any_ids(seeds in prop::collection::vec((0u8..6, any::<u32>()), 0..60), split in 0.0..1.0f64) {
        for (name, tokenizer) in tokenizers_once() {
            let (vocab, odd) = (tokenizer.0.vocab_size() as u32, &tokenizer.1);
            let id = |&(kind, seed): &(u8, u32)| match kind {
                0 => seed % (vocab + 40),
                1 => seed % 5,
                2 => seed % vocab,
                _ => odd[seed as usize % odd.len()],
            };
            let ids: Vec<u32> = seeds.iter().map(id).collect();
            let (prompt, rest) = ids.split_at((ids.len() as f64 * split) as usize);
            let [whole, before] = [&ids[..], prompt].map(|ids| tokenizer.0.decode(ids).unwrap());
            prop_assert_eq!(streamed(&tokenizer.0, prompt, rest), added(&whole, &before), "{}: {:?} {:?}", name, prompt, rest);
        }
    }
}

type Known = (Arc<Tokenizer>, Vec<u32>);

fn tokenizers_once() -> &'static [(String, Known)] {
    static ONCE: std::sync::OnceLock<Vec<(String, Known)>> = std::sync::OnceLock::new();
    ONCE.get_or_init(|| {
        let with_odd = |(name, tokenizer): (String, Arc<Tokenizer>)| {
            let odd = odd_ids(&tokenizer);
            (name, (tokenizer, odd))
        };
        tokenizers().into_iter().map(with_odd).collect()
    })
}

#[test]
fn texts_split_anywhere() {
    let text = "Lily said: \u{201c}h\u{e9}llo \u{1f426} กขค world\u{201d}.\n\n  ".repeat(3);
    for (name, tokenizer) in tokenizers() {
        let ids = tokenizer.encode(&text, true).unwrap();
        let whole = tokenizer.decode(&ids).unwrap();
        for split in 0..ids.len() {
            let before = tokenizer.decode(&ids[..split]).unwrap();
            let found = streamed(&tokenizer, &ids[..split], &ids[split..]);
            assert_eq!(found, added(&whole, &before), "{name}: split at {split}");
        }
    }
}

#[test]
fn stop_strings_of_any_characters() {
    for (name, tokenizer) in tokenizers() {
        for (text, stop, left) in [
            ("one ก two", "ก", "one "),
            ("กขค กขค", "ค ก", "กข"),
            ("a\nb", "\n", "a"),
            ("x \u{1f426}\u{1f427}", "\u{1f426}\u{1f427}", "x "),
        ] {
            let ids = tokenizer.encode(text, false).unwrap();
            let mut written = Written::new(tokenizer.clone(), &[], vec![stop.to_owned()]).unwrap();
            let mut found = String::new();
            let mut used = 0;
            let stopped = ids.iter().find_map(|&id| {
                let (piece, stopped) = written.push(id).unwrap();
                found.push_str(&piece);
                used += 1;
                stopped
            });
            assert_eq!((found.trim_start(), stopped.as_deref()), (left, Some(stop)), "{name}: {text:?}");
            // The first token with which the text contains it.
            assert!(tokenizer.decode(&ids[..used]).unwrap().contains(stop), "{name}");
            assert!(!tokenizer.decode(&ids[..used - 1]).unwrap().contains(stop), "{name}");
        }
    }
}

#[test]
fn what_is_held_back_comes_at_the_end() {
    for (name, tokenizer) in tokenizers() {
        let ids = tokenizer.encode("ok \u{1f426}", false).unwrap();
        let cut = &ids[..ids.len() - 1];
        if tokenizer.decode(cut).unwrap().ends_with('\u{fffd}') {
            let mut written = Written::new(tokenizer.clone(), &[], vec!["\u{fffd}".to_owned()]).unwrap();
            let told: String = cut.iter().map(|&id| written.push(id).unwrap().0).collect();
            let (rest, stopped) = written.finish().unwrap();
            assert_eq!((format!("{told}{rest}").trim(), stopped.as_deref()), ("ok", Some("\u{fffd}")), "{name}");
        }
    }
}
