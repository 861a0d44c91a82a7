//! LongRoPE rotates all keys in another way when a sequence crosses its original length: what is cached is computed anew, by the
//! session where a call crosses, or step by step.

use std::sync::Arc;

use sparrow::internals::spec::RopeScaling;
use sparrow::session::{Logits, Segment};
use sparrow::{DType, Model, Selector, Session};
use sparrow_testing::*;

use super::SAME;

/// A golden model that crosses its original length, and that length.
fn crossing() -> (Arc<Model>, usize) {
    let model = load(&goldens_dir().join("phi3-crossing-old"));
    let original = model.spec.ropes().find_map(|rope| match rope.scaling {
        RopeScaling::LongRope { original_max_position_embeddings, .. } => Some(original_max_position_embeddings),
        _ => None,
    });
    (Arc::new(model), original.unwrap())
}

fn new_session(model: &Arc<Model>) -> Session {
    session(&exact(), model, Selector::dense(), 2, Some(DType::F32))
}

fn step(session: &mut Session, sequence: usize, tokens: &[u32], logits: Logits) -> Vec<f32> {
    session.step(&[Segment { sequence, tokens, logits }]).unwrap().to_vec()
}

#[test]
fn a_restart_step_by_step_is_what_decoding_does() {
    let (model, original) = crossing();
    let context = model.spec.context_length();
    assert!(original + 3 < context, "{original} of {context} tokens");
    let ids = Random::new(5).ids(model.spec.vocab_size, context);
    let start = original - 2;
    let mut decoding = new_session(&model);
    decoding.prefill(0, &ids[..start]).unwrap();
    let expected = decode_each(&mut decoding, 0, &ids[start..]);

    for size in [original, 3, 1] {
        let mut stepping = new_session(&model);
        stepping.prefill(0, &ids[..start]).unwrap();
        let mut restarted = 0;
        for (i, &token) in ids[start..].iter().enumerate() {
            let len = stepping.len(0) + 1;
            if stepping.is_outdated(0, len) {
                assert_eq!(len, original + 1);
                let tokens = stepping.restart(0, len).unwrap();
                assert_eq!((&tokens[..], stepping.len(0)), (&ids[..original], 0));
                for piece in tokens.chunks(size) {
                    assert!(step(&mut stepping, 0, piece, Logits::None).is_empty());
                }
                restarted += 1;
            }
            let found = step(&mut stepping, 0, &[token], Logits::Last);
            let worst = difference(&found, &expected[i]);
            assert!(worst < SAME, "pieces of {size}, token {i}: {worst:.1e} off");
            assert!(size < original || found == expected[i], "the same steps give the same bits");
        }
        assert_eq!(restarted, 1);
    }
}

/// While one sequence is computed anew, another one decodes in the same steps.
#[test]
fn a_restart_shares_its_steps_with_others() {
    let (model, original) = crossing();
    let vocab = model.spec.vocab_size;
    let mut random = Random::new(6);
    let (ids, others) = (random.ids(vocab, original + 1), random.ids(vocab, original));
    let mut alone = new_session(&model);
    let expected = decode_each(&mut alone, 0, &ids);
    let other_expected = decode_each(&mut alone, 1, &others);

    let mut session = new_session(&model);
    session.prefill(0, &ids[..original]).unwrap();
    let len = original + 1;
    assert!(session.is_outdated(0, len) && !session.is_outdated(0, original) && !session.is_outdated(1, len));
    let tokens = [session.restart(0, len).unwrap(), vec![ids[original]]].concat();
    let mut last = Vec::new();
    for (i, piece) in tokens.chunks(4).enumerate() {
        let segments = [
            Segment { sequence: 1, tokens: &others[i..=i], logits: Logits::Last },
            Segment { sequence: 0, tokens: piece, logits: Logits::Last },
        ];
        let logits = session.step(&segments).unwrap();
        let (other, own) = logits.split_at(vocab);
        let worst = difference(other, &other_expected[i]);
        assert!(worst < SAME, "beside piece {i}: {worst:.1e} off");
        last = own.to_vec();
    }
    let worst = difference(&last, &expected[original]);
    assert!(worst < SAME, "{worst:.1e} off");
}

#[test]
fn an_outdated_sequence_is_refused_by_steps() {
    let (model, original) = crossing();
    let ids = Random::new(7).ids(model.spec.vocab_size, original + 1);
    let mut session = new_session(&model);
    session.prefill(0, &ids[..original]).unwrap();
    let segment = Segment { sequence: 0, tokens: &ids[original..], logits: Logits::Last };
    let message = session.step(&[segment]).unwrap_err().to_string();
    assert!(message.contains("restart it"), "{message}");
    assert_eq!(session.tokens(0), &ids[..original]);
    // A copy is as old as its original.
    session.copy_prefix(0, 1, original - 1).unwrap();
    assert!(session.is_outdated(1, original + 1) && !session.is_outdated(1, original));
    // Nothing cached is never outdated.
    session.truncate(1, 0).unwrap();
    assert!(!session.is_outdated(1, original + 1));
    // Other calls see to it themselves.
    session.prefill(0, &ids[original..]).unwrap();
    assert_eq!(session.len(0), original + 1);
}
