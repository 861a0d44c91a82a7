//! Logits that are not finite end a step, which says where they come from.

use sparrow::session::{Logits, Segment};
use sparrow::{KvOptions, Load, Session, SessionOptions};
use sparrow_testing::tiny::{self, TensorFile, tensors, write};

/// The tiny model, one tensor changed.
fn with(tensor: &str, change: impl Fn(&mut [f32])) -> Session {
    let dir = tempfile::tempdir().unwrap();
    tiny::write_model(dir.path());
    let mut file = TensorFile::new(&tensors());
    let bytes = file.tensor(tensor);
    let mut values: Vec<f32> = bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect();
    change(&mut values);
    let changed: Vec<u8> = values.into_iter().flat_map(f32::to_le_bytes).collect();
    bytes.copy_from_slice(&changed);
    write(&dir.path().join("model.safetensors"), file.bytes());
    let loaded = Load::new(dir.path()).threads(1).open(|_, _, _| ()).unwrap();
    loaded.session(SessionOptions { sequences: 2, capacity: 8, kv: KvOptions::default() }).unwrap()
}

#[test]
fn the_layer_and_the_tensor_are_named() {
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for (tensor, place) in [
            ("model.layers.0.self_attn.q_proj.weight", "the attention of layer 0"),
            ("model.layers.1.self_attn.o_proj.weight", "the attention of layer 1"),
            ("model.layers.0.mlp.down_proj.weight", "the MLP of layer 0"),
            ("model.layers.1.mlp.down_proj.weight", "the MLP of layer 1"),
        ] {
            let mut session = with(tensor, |values| values.fill(value));
            let message = session.prefill(0, &[3, 5, 7]).unwrap_err().to_string();
            assert!(message.starts_with("the logits after token 3 are not finite: "), "{message}");
            assert!(message.contains(place) && message.contains(&format!("{tensor} holds NaN")), "{message}");
        }
    }
    let mut session = with("model.embed_tokens.weight", |values| values[5 * tiny::HIDDEN] = f32::NAN);
    let message = session.prefill(0, &[3, 5]).unwrap_err().to_string();
    assert!(message.contains("the embedding; model.embed_tokens.weight holds NaN"), "{message}");
    // A tied embedding is the head too, which sees every token.
    let message = session.prefill(0, &[3]).unwrap_err().to_string();
    assert!(message.contains("after token 1") && message.contains("the head; model.embed_tokens"), "{message}");
}

#[test]
fn numbers_that_overflow_are_told_apart() {
    let mut session = with("model.norm.weight", |values| values.fill(f32::MAX));
    let message = session.prefill(0, &[3, 5, 7]).unwrap_err().to_string();
    assert!(message.contains("in the head; its weights are finite, so numbers overflow"), "{message}");
}

#[test]
fn the_step_is_taken_back_and_the_session_goes_on() {
    let mut session = with("model.layers.1.mlp.down_proj.weight", |values| values.fill(f32::NAN));
    let before = session.len(0);
    for _ in 0..2 {
        session.prefill(0, &[3, 5]).unwrap_err();
        session.decode(&[(0, 3), (1, 4)]).unwrap_err();
        let segment = |sequence| Segment { sequence, tokens: &[1, 2], logits: Logits::All };
        session.step(&[segment(0), segment(1)]).unwrap_err();
        session.prefill_each(1, &[1, 2], &mut (), |_, _| panic!("no logits are handed out")).unwrap_err();
        assert_eq!((session.len(0), session.len(1), session.sequences()), (before, 0, 2));
    }
    // Without logits nothing is judged.
    let segment = Segment { sequence: 0, tokens: &[1, 2], logits: Logits::None };
    session.step(&[segment]).unwrap();
    assert_eq!(session.len(0), 2);
}
