//! A step that is cancelled between two layers was not: sequences are what they were before, and go on as if nothing had happened.

use std::sync::{Arc, Mutex};

use sparrow::internals::backend::{ActiveNeurons, Observer, Point};
use sparrow::internals::run::PREFILL_ROWS;
use sparrow::internals::spec::ModelSpec;
use sparrow::internals::spec::RopeScaling;
use sparrow::session::{Cancel, Logits, Segment};
use sparrow::{DType, Error, KvOptions, Load, Model, Placement, Selector, SelectorSpec, Session, SessionOptions};
use sparrow_testing::*;
use sparrow_tools::synth::synthesize;

use super::caches;

const LAYERS: usize = 4;

/// Cancels when it sees the MLP of a layer, the `after`th time.
struct Stop {
    cancel: Cancel,
    layer: usize,
    after: usize,
    last: usize,
}

impl Stop {
    fn in_layer(session: &Session, layer: usize) -> Self {
        Stop { cancel: session.cancel().clone(), layer, after: 1, last: 0 }
    }
}

impl Observer for Stop {
    fn mlp(&mut self, layer: usize, _: &[f32], _: usize, _: Option<ActiveNeurons>) {
        self.after -= usize::from(layer == self.layer);
        if self.after == 0 {
            self.cancel.cancel();
        }
    }

    fn see(&mut self, layer: usize, _: Point, _: &[f32], _: usize) {
        self.last = layer;
    }
}

fn model(change: impl FnOnce(&mut ModelSpec)) -> Arc<Model> {
    let mut spec =
        ModelSpec { num_layers: LAYERS, windows: vec![None; LAYERS], max_position_embeddings: 1200, ..odd_spec() };
    change(&mut spec);
    Arc::new(random_model(&spec, DType::F32, 17))
}

fn session_of(model: &Arc<Model>, kv: KvOptions) -> Session {
    let options = SessionOptions { sequences: 2, capacity: model.spec.context_length(), kv };
    Session::new(model.clone(), exact(), Selector::dense(), options).unwrap()
}

/// Appends to sequence 0 and is stopped in a layer; then the wish is taken back.
fn cancelled(session: &mut Session, tokens: &[u32], layer: usize) {
    let mut stop = Stop::in_layer(session, layer);
    let error = session.observe(0, tokens, &mut stop).unwrap_err();
    assert!(matches!(error, Error::Cancelled), "{error}");
    assert_eq!(stop.last, layer, "no further layer ran");
    assert!(session.cancel().is_cancelled());
    session.cancel().reset();
}

/// Both go on alike, by tokens and by prompts.
fn assert_alike(what: &str, a: &mut Session, b: &mut Session) {
    for sequence in 0..2 {
        assert_eq!(a.tokens(sequence), b.tokens(sequence), "{what}");
    }
    for token in 1..4 {
        let (found, expected) = (a.decode(&[(0, token), (1, 9)]).unwrap(), b.decode(&[(0, token), (1, 9)]).unwrap());
        assert!(found == expected, "{what}: {:e} off", difference(found, expected));
    }
    let tokens = Random::new(21).ids(101, 90);
    let (found, expected) = (a.prefill(0, &tokens).unwrap(), b.prefill(0, &tokens).unwrap());
    assert!(found == expected, "{what}, prompt: {:e} off", difference(found, expected));
}

#[test]
fn a_cancelled_step_leaves_sequences_as_they_were() {
    let model = model(|_| ());
    let ids = Random::new(20).ids(model.spec.vocab_size, 300);
    for kv in caches() {
        for cached in [0, 20, 150] {
            for (more, layer) in [(1, 0), (3, 2), (150, 0), (150, 2), (1, LAYERS - 2)] {
                let what = format!("{cached} tokens, {more} more, layer {layer}, {:?}", kv.sparsity);
                let [mut stopped, mut plain] = [(); 2].map(|()| {
                    let mut session = session_of(&model, kv);
                    if cached > 0 {
                        session.prefill(0, &ids[..cached]).unwrap();
                    }
                    session.prefill(1, &ids[..7]).unwrap();
                    session
                });
                for _ in 0..2 {
                    cancelled(&mut stopped, &ids[cached..cached + more], layer);
                }
                assert_alike(&what, &mut stopped, &mut plain);
            }
        }
    }
}

/// Of a prompt that takes several steps, those that were done stay.
#[test]
fn a_prompt_keeps_the_steps_that_were_done() {
    let model = model(|_| ());
    let ids = Random::new(22).ids(model.spec.vocab_size, 2 * PREFILL_ROWS);
    for kv in caches() {
        let (mut stopped, mut plain) = (session_of(&model, kv), session_of(&model, kv));
        let mut stop = Stop { after: 2, ..Stop::in_layer(&stopped, 1) };
        assert!(matches!(stopped.observe(0, &ids, &mut stop), Err(Error::Cancelled)));
        stopped.cancel().reset();
        assert_eq!(stopped.tokens(0), &ids[..PREFILL_ROWS]);
        plain.prefill(0, &ids[..PREFILL_ROWS]).unwrap();
        assert_alike("the first step of two", &mut stopped, &mut plain);
    }
}

/// Where keys are rotated by how long a sequence will be, a prompt that was not computed does not count.
#[test]
fn a_cancelled_prompt_is_not_expected_any_more() {
    let dynamic = rope(1e4, 12, RopeScaling::Dynamic { factor: 8.0 });
    let model = model(|spec| (spec.max_position_embeddings, spec.positions) = (30, dynamic));
    let ids = Random::new(23).ids(model.spec.vocab_size, 200);
    let (mut stopped, mut plain) = (session_of(&model, caches()[0]), session_of(&model, caches()[0]));
    for session in [&mut stopped, &mut plain] {
        session.prefill(0, &ids[..10]).unwrap();
    }
    cancelled(&mut stopped, &ids[10..100], 1);
    assert_alike("dynamic rope", &mut stopped, &mut plain);
}

/// What is computed anew when a sequence crosses the original length of LongRoPE is not lost if that is cancelled.
#[test]
fn a_cancelled_renewal_loses_no_tokens() {
    let scaling = RopeScaling::LongRope {
        short_factor: vec![1.0; 6],
        long_factor: vec![3.0; 6],
        original_max_position_embeddings: 50,
    };
    let model = model(|spec| spec.positions = rope(1e4, 12, scaling));
    let ids = Random::new(24).ids(model.spec.vocab_size, 60);
    let (mut stopped, mut plain) = (session_of(&model, caches()[0]), session_of(&model, caches()[0]));
    for session in [&mut stopped, &mut plain] {
        session.prefill(0, &ids[..50]).unwrap();
    }
    stopped.cancel().cancel();
    assert!(matches!(stopped.decode(&[(0, 3)]), Err(Error::Cancelled)));
    stopped.cancel().reset();
    assert_alike("decoding", &mut stopped, &mut plain);
}

#[test]
fn every_call_can_be_cancelled() {
    let model = model(|_| ());
    let mut session = session_of(&model, caches()[0]);
    session.prefill(0, &[1, 2, 3]).unwrap();
    let expected = session.decode(&[(0, 4)]).unwrap().to_vec();
    session.truncate(0, 3).unwrap();
    // Of another session, too: what is asked for is asked of all that share it.
    let shared = Cancel::default();
    session.set_cancel(shared.clone());
    shared.cancel();
    let segment = Segment { sequence: 0, tokens: &[4], logits: Logits::Last };
    assert!(matches!(session.step(&[segment]), Err(Error::Cancelled)));
    assert!(matches!(session.decode(&[(0, 4)]), Err(Error::Cancelled)));
    assert!(matches!(session.prefill(0, &[4]), Err(Error::Cancelled)));
    assert!(matches!(session.prefill_each(0, &[4], &mut (), |_, _| Ok(())), Err(Error::Cancelled)));
    assert_eq!((session.len(0), session.stats().steps), (3, 2));
    // Without work there is nothing to stop.
    assert!(session.step(&[]).unwrap().is_empty());
    shared.reset();
    assert_eq!(session.decode(&[(0, 4)]).unwrap(), expected);
}

/// The pools of the weight cache hold what they hold.
#[test]
fn a_cancelled_step_leaves_the_weight_cache_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model");
    synthesize("smollm2-135m", DType::BF16, true, 0.0, &path, |_, _| ()).unwrap();
    let placement: Placement = "cache:0.2".parse().unwrap();
    let load = || Load::new(&path).cpu(cpu()).weights(placement).selector(SelectorSpec::forced(0.1, 0.8));
    let [mut stopped, mut plain] = [(); 2].map(|()| {
        let loaded = load().open(|_, _, _| ()).unwrap();
        let options = SessionOptions { sequences: 1, capacity: 40, kv: KvOptions::default() };
        let mut session = loaded.session(options).unwrap();
        decode_each(&mut session, 0, &[1, 2, 3]);
        session
    });
    for layer in [0, 11] {
        cancelled(&mut stopped, &[4], layer);
    }
    assert_eq!(decode_each(&mut stopped, 0, &[5, 6, 7]), decode_each(&mut plain, 0, &[5, 6, 7]));
}

/// A poll is asked before every layer, on the thread that computes, and what it says stops the step until it says otherwise.
#[test]
fn a_poll_stops_a_step_before_any_layer() {
    let model = model(|_| ());
    let asked = Arc::new(Mutex::new(Vec::new()));
    for stop_at in 1..=LAYERS {
        let (mut stopped, mut plain) = (session_of(&model, caches()[0]), session_of(&model, caches()[0]));
        let polled = asked.clone();
        stopped.set_cancel(Cancel::with_poll(move || {
            let mut polled = polled.lock().unwrap();
            polled.push(std::thread::current().id());
            polled.len() == stop_at
        }));
        assert!(matches!(stopped.prefill(0, &[1, 2, 3]), Err(Error::Cancelled)), "at {stop_at}");
        assert!(!stopped.cancel().is_asked());
        let polls = asked.lock().unwrap().clone();
        assert_eq!(polls, vec![std::thread::current().id(); stop_at]);
        assert_alike("after a poll", &mut stopped, &mut plain);
        asked.lock().unwrap().clear();
    }
}
