//! Calls that make no sense are errors: they say what is wrong, change nothing, and the session goes on.

use sparrow::session::{Logits, Segment};
use sparrow::{Error, KvOptions, Result, Selector, Session, SessionOptions};
use sparrow_testing::*;

use super::{caches, model};

const CONTEXT: usize = 40;
const VOCAB: u32 = 101;

/// Sequences 0 and 1 with tokens, 2 empty and small, 3 removed.
fn session_to_misuse(kv: KvOptions) -> Session {
    let options = SessionOptions { sequences: 2, capacity: 30, kv };
    let mut session = Session::new(model(CONTEXT), cpu(), Selector::dense(), options).unwrap();
    assert_eq!((session.add_sequence(4).unwrap(), session.add_sequence(4).unwrap()), (2, 3));
    session.remove_sequence(3).unwrap();
    session.prefill(0, &[1, 2, 3, 4, 5, 6, 7, 8, 9]).unwrap();
    session.prefill(1, &[11, 12, 13]).unwrap();
    session
}

type Call = fn(&mut Session) -> Result<()>;

fn step(session: &mut Session, segments: &[(usize, &[u32])]) -> Result<()> {
    let segment = |&(sequence, tokens)| Segment { sequence, tokens, logits: Logits::Last };
    let segments: Vec<Segment> = segments.iter().map(segment).collect();
    session.step(&segments).map(drop)
}

#[test]
fn wrong_calls_are_errors_and_change_nothing() {
    let cases: &[(&str, Call, &str)] = &[
        ("a sequence without room", |s| s.add_sequence(0).map(drop), "at least one token of room"),
        (
            "more room than the context",
            |s| s.add_sequence(CONTEXT + 1).map(drop),
            "41 tokens do not fit the context of 40",
        ),
        ("removing what is not there", |s| s.remove_sequence(4).map(drop), "there is no sequence 4"),
        ("removing what was removed", |s| s.remove_sequence(3).map(drop), "there is no sequence 3"),
        ("removing far out", |s| s.remove_sequence(usize::MAX).map(drop), "there is no sequence"),
        ("growing what is not there", |s| s.grow(3, 9), "there is no sequence 3"),
        ("growing beyond the context", |s| s.grow(0, CONTEXT + 1), "41 tokens do not fit the context of 40"),
        ("growing to nothing", |s| s.grow(0, 0), "at least one token of room"),
        ("cutting what is not there", |s| s.truncate(9, 0), "there is no sequence 9"),
        ("cutting to more", |s| s.truncate(1, 4), "sequence 1 has 3 tokens: it cannot be cut to 4"),
        ("copying from nowhere", |s| s.copy_prefix(7, 0, 0), "there is no sequence 7"),
        ("copying to nowhere", |s| s.copy_prefix(0, 3, 1), "there is no sequence 3"),
        ("copying more than there is", |s| s.copy_prefix(1, 0, 4), "which has 3"),
        ("copying more of itself than there is", |s| s.copy_prefix(1, 1, 4), "which has 3"),
        ("copying more than there is room for", |s| s.copy_prefix(0, 2, 5), "has room for 4"),
        ("an order with a gap", |s| s.reorder(&[0, 1, 2, 3]), "there is no sequence 3"),
        ("an order of too many", |s| s.reorder(&[0, 1, 2, 2, 0]), "there is no sequence 3"),
        ("an order of what is beyond it", |s| s.reorder(&[1, 2]), "cannot take 2 for sequence 1 of 2"),
        ("an order of what is not there", |s| s.reorder(&[0, 8]), "there is no sequence 8"),
        ("an order without room", |s| s.reorder(&[1, 2, 0]), "cannot take 0 for sequence 2 of 3"),
        ("counts of what is not there", |s| s.sequence_stats(3).map(drop), "there is no sequence 3"),
        ("expecting of what is not there", |s| s.expect(5, 3), "there is no sequence 5"),
        ("restarting what is not there", |s| s.restart(5, 3).map(drop), "there is no sequence 5"),
        ("a step of what is not there", |s| step(s, &[(0, &[1]), (3, &[1])]), "there is no sequence 3"),
        (
            "a step of one twice",
            |s| step(s, &[(0, &[1]), (1, &[1]), (0, &[2])]),
            "sequence 0 is named twice in one step",
        ),
        ("a step of no tokens", |s| step(s, &[(0, &[1]), (1, &[])]), "sequence 1 is to be advanced by none"),
        (
            "a step beyond the vocabulary",
            |s| step(s, &[(0, &[1]), (1, &[5, VOCAB])]),
            "id 101 is outside the model's vocabulary of 101",
        ),
        ("a step beyond the room", |s| step(s, &[(0, &[1]), (2, &[1; 5])]), "5 tokens do not fit the context of 4"),
        ("decoding what is not there", |s| s.decode(&[(0, 1), (6, 1)]).map(drop), "there is no sequence 6"),
        (
            "decoding one twice",
            |s| s.decode(&[(1, 1), (0, 1), (1, 2)]).map(drop),
            "sequence 1 is named twice in one step",
        ),
        (
            "decoding beyond the vocabulary",
            |s| s.decode(&[(0, 1), (1, u32::MAX)]).map(drop),
            "outside the model's vocabulary",
        ),
        ("a prompt of what is not there", |s| s.prefill(3, &[1]).map(drop), "there is no sequence 3"),
        ("a prompt without tokens", |s| s.prefill(0, &[]).map(drop), "prompt: has no tokens"),
        ("a prompt beyond the vocabulary", |s| s.prefill(0, &[1, VOCAB]).map(drop), "outside the model's vocabulary"),
        ("a prompt beyond the room", |s| s.prefill(0, &[1; 22]).map(drop), "31 tokens do not fit the context of 30"),
        ("observing what is not there", |s| s.observe(3, &[1], &mut ()), "there is no sequence 3"),
        ("observing nothing", |s| s.observe(0, &[], &mut ()), "prompt: has no tokens"),
        ("each of what is not there", |s| s.prefill_each(8, &[1], &mut (), |_, _| Ok(())), "there is no sequence 8"),
    ];
    for kv in caches() {
        let mut session = session_to_misuse(kv);
        let expected = session_to_misuse(kv).decode(&[(0, 5), (1, 6), (2, 7)]).unwrap().to_vec();
        let state = |session: &Session| -> Vec<(Vec<u32>, usize)> {
            (0..5).map(|s| (session.tokens(s).to_vec(), session.capacity(s))).collect()
        };
        let before = state(&session);
        for (what, call, says) in cases {
            let message = call(&mut session).expect_err(what).to_string();
            assert!(message.contains(says), "{what}: {message:?} does not say {says:?}");
            assert_eq!(state(&session), before, "{what} left something behind");
            assert_eq!(session.sequences(), 3, "{what}");
        }
        assert!(!session.is_outdated(3, 9) && !session.is_outdated(99, 9));
        assert_eq!((session.len(3), session.capacity(99), session.tokens(99)), (0, 0, &[][..]));
        assert_eq!(session.stats().steps, 2, "nothing of this was a step");
        assert!(session.decode(&[]).unwrap().is_empty());
        assert_eq!(session.decode(&[(0, 5), (1, 6), (2, 7)]).unwrap(), expected);
    }
}

/// What the caller finds wrong with a token ends a prompt there.
#[test]
fn an_error_of_the_caller_ends_a_prompt() {
    let mut session = session_to_misuse(caches()[0]);
    let refuse = |i: usize, _: &[f32]| if i < 2 { Ok(()) } else { Err(Error::Cancelled) };
    let error = session.prefill_each(0, &[1, 2, 3, 4], &mut (), refuse).unwrap_err();
    assert!(matches!(error, Error::Cancelled));
    assert_eq!(session.len(0), 13, "the step was done");
}

#[test]
fn sessions_that_cannot_be_are_refused() {
    let open = |sequences, capacity| {
        let options = SessionOptions { sequences, capacity, kv: KvOptions::default() };
        Session::new(model(CONTEXT), cpu(), Selector::dense(), options)
    };
    assert!(open(1, 0).unwrap_err().to_string().contains("at least one token of room"));
    let error = open(1, CONTEXT + 1).unwrap_err();
    assert!(matches!(error, Error::ContextLength { needed: 41, context: CONTEXT }), "{error}");
    assert_eq!(open(0, 0).unwrap().sequences(), 0);
}
