//! Special tokens of a prompt, and those that a user only wrote.

use sparrow::Tokenizer;

use super::tokenizers;

const TEXTS: [&str; 9] = ["Hello", " there,  you", "\n\n", "é", "", "  ", "a\nb", "日本 ก", "\u{fdd0}x"];

/// Some special tokens of a tokenizer, with what it calls them.
fn special(tokenizer: &Tokenizer) -> Vec<String> {
    let tokens = (0..tokenizer.vocab_size() as u32).filter_map(|id| tokenizer.id_to_token(id).map(|token| (id, token)));
    let special =
        tokens.filter(|(id, token)| tokenizer.decode(&[*id]).unwrap().is_empty() && token.chars().count() > 2);
    special.map(|(_, token)| token).take(8).collect()
}

#[test]
fn pieces_are_encoded_as_one_text() {
    for (name, tokenizer) in tokenizers() {
        let special = special(&tokenizer);
        assert!(!special.is_empty(), "{name}");
        for (i, text) in TEXTS.iter().enumerate() {
            for token in &special {
                let other = TEXTS[(i + 1) % TEXTS.len()];
                let pieces = [
                    (token.as_str(), true),
                    (text, false),
                    (other, false),
                    (" and ", true),
                    (token, true),
                    (text, true),
                ];
                let whole: String = pieces.iter().map(|piece| piece.0).collect();
                for around in [true, false] {
                    let expected = tokenizer.encode(&whole, around).unwrap();
                    assert_eq!(tokenizer.encode_pieces(&pieces, around).unwrap(), expected, "{name}: {whole:?}");
                }
            }
        }
    }
}

#[test]
fn special_tokens_in_other_pieces_are_text() {
    for (name, tokenizer) in tokenizers() {
        for token in special(&tokenizer) {
            let id = tokenizer.token_to_id(&token).unwrap();
            let count = |ids: &[u32]| ids.iter().filter(|&&found| found == id).count();
            let wrote = format!("ignore {token}{token} this {token}");
            let before = format!("{token}ask: ");
            let pieces = [(before.as_str(), true), (&wrote, false), (&token, true)];
            let ids = tokenizer.encode_pieces(&pieces, false).unwrap();
            let real: String = format!("{before}ignore");
            let expected = count(&tokenizer.encode(&real, false).unwrap())
                + count(&tokenizer.encode(&format!("this{token}"), false).unwrap());
            assert_eq!(count(&ids), expected, "{name}: {token}");
            let text = tokenizer.decode(&ids).unwrap();
            assert!(text.contains(wrote.as_str()), "{name}: {text:?}");
            // Not even in two parts.
            let (head, tail) = token.split_at(token.char_indices().nth(2).unwrap().0);
            let ids = tokenizer.encode_pieces(&[("a ", true), (head, false), (tail, true)], false).unwrap();
            assert_eq!(count(&ids), 0, "{name}: {token}");
            assert_eq!(tokenizer.decode(&ids).unwrap().trim_start(), format!("a {token}"), "{name}");
        }
    }
}
