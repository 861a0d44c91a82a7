//! What sessions count, for all sequences and for each.

use std::sync::Arc;

use sparrow::internals::backend::{ActiveNeurons, Observer};
use sparrow::session::{Cancel, Logits, Segment};
use sparrow::{DType, Error, Model, Selector, Session};
use sparrow_testing::*;

use super::caches;

/// Every kind of selector, and the dense model.
const SELECTORS: [&str; 6] = [
    "dense",
    "gate:quantile=0.6",
    "sign:quantile=0.3",
    "input:quantile=0.4",
    "skip:attention=1",
    "forced:active=0.3,overlap=0.5",
];

fn ready(selector: &str) -> (Arc<Model>, Selector) {
    prepare(random_model(&odd_spec(), DType::F32, 14), parse(selector))
}

/// Tokens of each sequence, and its active fraction, by what the session says.
fn of_sequences(session: &Session) -> (u64, f64) {
    let stats = (0..3).filter_map(|s| session.sequence_stats(s).ok());
    let (mut tokens, mut active) = (0, 0.0);
    for stats in stats {
        tokens += stats.tokens;
        active += stats.tokens as f64 * stats.active_fraction();
    }
    (tokens, active / tokens as f64)
}

#[test]
fn counts_of_sequences_add_up_to_the_sessions() {
    for text in SELECTORS {
        let (model, selector) = ready(text);
        let ids = Random::new(30).ids(model.spec.vocab_size, 64);
        let mut session = session_with(&cpu(), &model, selector, 3, caches()[0]);
        let segment = |sequence, tokens| Segment { sequence, tokens, logits: Logits::Last };
        session.step(&[segment(0, &ids[..20]), segment(1, &ids[20..23])]).unwrap();
        session.step(&[segment(2, &ids[..1]), segment(0, &ids[30..31])]).unwrap();
        session.prefill(2, &ids[..11]).unwrap();
        session.decode(&[(1, 4), (2, 5)]).unwrap();
        session.decode(&[(1, 6)]).unwrap();

        let (tokens, active) = of_sequences(&session);
        assert_eq!((tokens, session.stats().steps), (39, 5), "{text}");
        let all = session.stats().active_fraction();
        assert!((active - all).abs() < 1e-12, "{text}: {active} of sequences, {all} of the session");
        assert_eq!(all == 1.0, text == "dense", "{text}: {all} active");
        let stats = [0, 1, 2].map(|s| *session.sequence_stats(s).unwrap());
        assert_eq!(stats.map(|s| s.tokens), [21, 5, 13], "{text}");
        assert_eq!(stats.map(|s| s.steps), [2, 3, 3], "{text}");

        // Cutting undoes no work; a sequence that is added begins at nothing; those of the session go on.
        session.truncate(0, 0).unwrap();
        assert_eq!(*session.sequence_stats(0).unwrap(), stats[0], "{text}");
        assert_eq!(session.remove_sequence(1).unwrap(), stats[1], "{text}");
        assert_eq!(session.add_sequence(10).unwrap(), 1);
        let new = session.sequence_stats(1).unwrap();
        assert_eq!((new.tokens, new.steps, new.active_fraction()), (0, 0, 1.0), "{text}");
        assert_eq!(session.stats().active_fraction(), all, "{text}");
        session.reset_stats();
        assert_eq!((session.stats().steps, session.stats().active_fraction()), (0, 1.0), "{text}");
        assert_eq!(*session.sequence_stats(2).unwrap(), stats[2], "{text}");
    }
}

/// Each token counts for its own sequence: what a recorder sees of it.
#[test]
fn each_sequence_counts_its_own_tokens() {
    for text in ["gate:mean-std=0.3", "sign:fixed=0.05"] {
        let (model, selector) = ready(text);
        let ids = Random::new(31).ids(model.spec.vocab_size, 30);
        let mut session = session_with(&cpu(), &model, selector, 2, caches()[0]);
        let fractions = [0, 1].map(|sequence| {
            let mut seen = Recorder::default();
            session.observe(sequence, &ids[sequence * 12..][..12 + sequence], &mut seen).unwrap();
            seen.active_fraction(model.spec.intermediate_size)
        });
        assert!(fractions[0] != fractions[1] && fractions[0] < 1.0, "{text}: {fractions:?}");
        for (sequence, expected) in fractions.into_iter().enumerate() {
            let found = session.sequence_stats(sequence).unwrap().active_fraction();
            assert!((found - expected).abs() < 1e-12, "{text}: {found} counted, {expected} seen");
        }
    }
}

/// Cancels in the second layer.
struct Stop(Cancel);

impl Observer for Stop {
    fn mlp(&mut self, layer: usize, _: &[f32], _: usize, _: Option<ActiveNeurons>) {
        if layer == 0 {
            self.0.cancel();
        }
    }
}

#[test]
fn a_step_that_was_cancelled_does_not_count() {
    for text in SELECTORS {
        let (model, selector) = ready(text);
        let ids = Random::new(32).ids(model.spec.vocab_size, 30);
        let mut session = session_with(&cpu(), &model, selector, 3, caches()[0]);
        session.prefill(0, &ids[..12]).unwrap();
        let before = (session.stats().clone(), *session.sequence_stats(0).unwrap());
        let mut stop = Stop(session.cancel().clone());
        assert!(matches!(session.observe(0, &ids[12..20], &mut stop), Err(Error::Cancelled)));
        session.cancel().reset();
        let now = session.stats();
        assert_eq!(*session.sequence_stats(0).unwrap(), before.1, "{text}");
        assert_eq!(now.steps, before.0.steps, "{text}");
        assert_eq!(now.active_fraction_per_layer(), before.0.active_fraction_per_layer(), "{text}");
        assert_eq!(now.layer_bytes, before.0.layer_bytes, "{text}");
        session.prefill(1, &ids[20..]).unwrap();
        let (found, expected) = (session.stats().active_fraction(), of_sequences(&session).1);
        assert!((found - expected).abs() < 1e-12, "{text}: {expected} of sequences, {found} of the session");
    }
}
