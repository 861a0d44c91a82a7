//! The tokens of a text, in windows.

use sparrow::Tokenizer;
use sparrow_testing::*;
use sparrow_tools::text::{first_tokens, windows};

#[test]
fn windows_begin_alike_and_hold_every_token() {
    assert_eq!(windows(&[1, 2, 3, 4, 5], &[9], 3).unwrap(), [9, 1, 2, 9, 3, 4, 9, 5]);
    assert_eq!(windows(&[1, 2, 3], &[], 2).unwrap(), [1, 2, 3]);
    assert!(windows(&[], &[9], 2).unwrap().is_empty());
    assert!(windows(&[1], &[9], 1).unwrap_err().to_string().contains("window"));
}

#[test]
fn the_first_tokens_are_those_of_the_whole_text() {
    let published =
        shared_data("tokenizers").map(|dir| std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()));
    let published = published.into_iter().flatten().filter(|dir| dir.join("tokenizer.json").exists());
    let text = std::fs::read_to_string(demo_dir().join("sample.txt")).unwrap();
    for dir in published.chain([demo_dir()]) {
        let tokenizer = Tokenizer::load(&dir).unwrap();
        let whole = tokenizer.encode(&text, false).unwrap();
        for count in [0, 1, 100, 333, whole.len(), usize::MAX] {
            let first = first_tokens(&tokenizer, &text, count).unwrap();
            assert_eq!(first, whole[..count.min(whole.len())], "{}: {count}", dir.display());
        }
    }
}
