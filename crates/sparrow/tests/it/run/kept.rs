//! Sequences of ended requests that are kept: requests that begin alike compute only the rest, and get what they get alone.

use sparrow::engine::{Engine, EngineOptions, Event, Finish, Request, Usage};
use sparrow::{DType, KvOptions, KvSparsity, Load, Loaded};
use sparrow_testing::*;

fn demo() -> Loaded {
    Load::new(demo_dir()).cpu(exact()).selector(parse("gate")).format(dense_format()).open(|_, _, _| ()).unwrap()
}

fn engine(loaded: &Loaded, kv: KvOptions, kept: usize) -> Engine {
    loaded.engine(kv, EngineOptions { kept, ..EngineOptions::default() }).unwrap()
}

fn dense() -> KvOptions {
    KvOptions { dtype: Some(DType::F32), ..KvOptions::default() }
}

fn request(prompt: &[u32], max_new_tokens: usize) -> Request {
    Request { prompt: prompt.to_vec(), max_new_tokens, ignore_eos: true, ..Request::default() }
}

fn serve(engine: &mut Engine, request: Request) -> (Vec<u32>, Usage) {
    engine.submit(request).unwrap();
    let mut tokens = Vec::new();
    for event in engine.events() {
        match event.unwrap() {
            Event::Token { token, .. } => tokens.push(token),
            Event::Finished { usage, .. } => return (tokens, usage),
        }
    }
    panic!("it did not finish");
}

#[test]
fn a_conversation_computes_only_what_is_new() {
    let (loaded, ids) = (demo(), sample_ids());
    let mut engine = engine(&loaded, dense(), 1);
    let mut prompt = ids[..40].to_vec();
    let mut expected_cached = 0;
    for turn in 0..3 {
        let (tokens, usage) = serve(&mut engine, request(&prompt, 10));
        let (alone, alone_usage) = serve(&mut self::engine(&loaded, dense(), 0), request(&prompt, 10));
        assert_eq!(tokens, alone, "turn {turn}");
        assert_eq!((usage.prompt_tokens, usage.cached_tokens), (prompt.len(), expected_cached), "turn {turn}");
        assert_eq!((alone_usage.cached_tokens, engine.session().sequences()), (0, 1));
        // The last token of an answer was chosen, not computed.
        expected_cached = prompt.len() + tokens.len() - 1;
        prompt.extend(&tokens);
        prompt.extend(&ids[100 + 7 * turn..107 + 7 * turn]);
    }
    // Another way to go on, from the middle of what is cached.
    let other = [&prompt[..25], &ids[300..320]].concat();
    let (tokens, usage) = serve(&mut engine, request(&other, 10));
    assert_eq!(tokens, serve(&mut self::engine(&loaded, dense(), 0), request(&other, 10)).0);
    assert_eq!(usage.cached_tokens, 25);
    // The whole prompt is cached: its last token is computed again, for its logits.
    let (again, usage) = serve(&mut engine, request(&other, 10));
    assert_eq!((again, usage.cached_tokens), (tokens, other.len() - 1));
    // Nothing in common.
    assert_eq!(serve(&mut engine, request(&[ids[0] + 1, 3, 4], 2)).1.cached_tokens, 0);
}

#[test]
fn a_request_is_told_what_it_took_itself() {
    let (loaded, ids) = (demo(), sample_ids());
    let mut engine = engine(&loaded, dense(), 1);
    serve(&mut engine, request(&ids[..200], 1));
    let (tokens, usage) = serve(&mut engine, request(&ids[..201], 5));
    assert_eq!((usage.cached_tokens, tokens.len()), (200, 5));
    // Of five tokens, not of two hundred more.
    let session = loaded.session(sparrow::SessionOptions { sequences: 1, capacity: 256, kv: dense() });
    let mut session = session.unwrap();
    session.prefill(0, &ids[..200]).unwrap();
    let before = session.take_stats(0).unwrap();
    session.prefill(0, &ids[200..201]).unwrap();
    for &token in &tokens[..4] {
        session.decode(&[(0, token)]).unwrap();
    }
    let expected = session.take_stats(0).unwrap();
    assert_eq!((before.tokens, expected.tokens), (200, 5));
    assert!((usage.active_fraction - expected.active_fraction()).abs() < 1e-6, "{usage:?} {expected:?}");
}

#[test]
fn the_newest_are_kept_and_the_longest_is_taken() {
    let (loaded, ids) = (demo(), sample_ids());
    let mut engine = engine(&loaded, dense(), 2);
    // They begin differently.
    let other = |i: usize| [&[i as u32 + 1], &ids[100 * i..100 * i + 20]].concat();
    for i in 1..=3 {
        serve(&mut engine, request(&other(i), 2));
    }
    assert_eq!(engine.session().sequences(), 2);
    assert_eq!(serve(&mut engine, request(&other(3), 2)).1.cached_tokens, 20);
    assert_eq!(serve(&mut engine, request(&other(2), 2)).1.cached_tokens, 20);
    assert_eq!(serve(&mut engine, request(&other(1), 2)).1.cached_tokens, 0);
    // Of two that begin alike the one that has more in common goes on.
    let short = [&other(1)[..6], &ids[500..510]].concat();
    assert_eq!(serve(&mut engine, request(&short, 2)).1.cached_tokens, 6);
    assert_eq!(engine.session().sequences(), 2);
}

/// What was pruned stays pruned: a sparse cache that would have to be cut is not used.
#[test]
fn sparse_caches_are_taken_over_whole() {
    let (loaded, ids) = (demo(), sample_ids());
    let sparsity = Some(KvSparsity { keys: 0.5, values: 0.5 });
    let kv = KvOptions { sparsity, dense_tail: 16, ..dense() };
    let mut engine = engine(&loaded, kv, 1);
    let (tokens, _) = serve(&mut engine, request(&ids[..150], 8));
    let whole = [&ids[..150], &tokens, &ids[200..220]].concat();
    assert_eq!(serve(&mut engine, request(&whole, 8)).1.cached_tokens, 157);
    let cut = [&ids[..140], &ids[200..220]].concat();
    let (cut_tokens, usage) = serve(&mut engine, request(&cut, 8));
    assert_eq!(usage.cached_tokens, 0);
    assert_eq!(cut_tokens, serve(&mut self::engine(&loaded, kv, 0), request(&cut, 8)).0);
}

#[test]
fn what_is_cancelled_is_kept_too() {
    let (loaded, ids) = (demo(), sample_ids());
    let mut engine = engine(&loaded, dense(), 1);
    let id = engine.submit(request(&ids[..50], 100)).unwrap();
    let told: usize = (0..5).map(|_| engine.step().unwrap().len()).sum();
    engine.cancel(id).unwrap();
    let finished = engine.step().unwrap();
    assert!(matches!(finished[..], [Event::Finished { finish: Finish::Cancelled, .. }]), "{finished:?}");
    let (_, usage) = serve(&mut engine, request(&ids[..60], 2));
    assert!(usage.cached_tokens >= 50 && told == 5, "{usage:?}");
    // One that waits gives back what it took.
    let id = engine.submit(request(&ids[..60], 2)).unwrap();
    engine.cancel(id).unwrap();
    engine.step().unwrap();
    assert!(serve(&mut engine, request(&ids[..60], 2)).1.cached_tokens >= 59);
}

#[test]
fn requests_have_stop_tokens_of_their_own() {
    let (loaded, ids) = (demo(), sample_ids());
    let (tokens, _) = serve(&mut engine(&loaded, dense(), 0), request(&ids[..30], 20));
    let stop = tokens[6];
    let first = tokens.iter().position(|&token| token == stop).unwrap();
    let stopping = Request { stop_tokens: vec![stop], ..request(&ids[..30], 20) };
    let mut engine = engine(&loaded, dense(), 0);
    engine.submit(stopping).unwrap();
    let events: Vec<Event> = engine.events().map(|event| event.unwrap()).collect();
    assert_eq!(events.len(), first + 2);
    assert!(matches!(events.last(), Some(Event::Finished { finish: Finish::EndOfSequence, .. })), "{events:?}");
}
