//! The engine: requests that are served together get what each gets alone, and end for the reasons they should.

use std::collections::BTreeMap;
use std::sync::Arc;

use sparrow::engine::{Engine, EngineOptions, Event, Finish, Request, RequestId, Usage};
use sparrow::internals::text::sample::SampleOptions;
use sparrow::{DType, Error, KvOptions, Load, Loaded, Selector, SelectorSpec};
use sparrow_testing::*;

use super::caches;

/// What became of a request.
#[derive(Debug, Clone, Default, PartialEq)]
struct Outcome {
    tokens: Vec<u32>,
    text: String,
    finish: Option<Finish>,
    usage: Option<Usage>,
}

impl Outcome {
    fn take(&mut self, event: Event) {
        assert_eq!(self.finish, None, "nothing is told of a request that has ended");
        match event {
            Event::Token { token, text, .. } => {
                self.tokens.push(token);
                self.text.push_str(&text);
            }
            Event::Finished { finish, text, usage, .. } => {
                self.text.push_str(&text);
                (self.finish, self.usage) = (Some(finish), Some(usage));
            }
        }
    }

    /// All but what depends on time.
    fn content(&self) -> (&[u32], &str, &Finish) {
        (&self.tokens, &self.text, self.finish.as_ref().unwrap())
    }
}

fn request_of(event: &Event) -> RequestId {
    match event {
        Event::Token { request, .. } | Event::Finished { request, .. } => *request,
    }
}

/// What becomes of all that was submitted.
fn serve(engine: &mut Engine) -> BTreeMap<RequestId, Outcome> {
    let mut outcomes: BTreeMap<RequestId, Outcome> = BTreeMap::new();
    for event in engine.events() {
        let event = event.unwrap();
        outcomes.entry(request_of(&event)).or_default().take(event);
    }
    assert!(engine.is_idle() && engine.session().sequences() == 0, "something is left");
    outcomes
}

fn alone(loaded: &Loaded, request: Request) -> Outcome {
    let mut engine = engine(loaded, EngineOptions { slots: 1, ..EngineOptions::default() });
    let id = engine.submit(request).unwrap();
    serve(&mut engine).remove(&id).unwrap()
}

fn engine(loaded: &Loaded, options: EngineOptions) -> Engine {
    loaded.engine(caches()[0], options).unwrap()
}

fn demo_with(selector: &str) -> Loaded {
    Load::new(demo_dir()).cpu(exact()).selector(parse(selector)).format(dense_format()).open(|_, _, _| ()).unwrap()
}

/// A small model without a tokenizer.
fn small() -> Loaded {
    let load = Load::made(random_model(&odd_spec(), DType::F32, 18)).cpu(exact());
    load.format(dense_format()).open(|_, _, _| ()).unwrap()
}

/// Requests of all lengths, greedy and drawn.
fn requests() -> Vec<Request> {
    let ids = sample_ids();
    let drawn = |seed| SampleOptions { temperature: 0.8, top_k: 40, seed, ..SampleOptions::default() };
    let sizes = [(1, 9), (130, 12), (7, 1), (40, 30), (3, 0), (61, 17), (20, 5), (90, 8)];
    let request = |(i, (prompt, max_new_tokens)): (usize, (usize, usize))| Request {
        prompt: ids[100 * i..100 * i + prompt].to_vec(),
        max_new_tokens,
        sample: if i % 3 == 2 { drawn(i as u64) } else { SampleOptions::default() },
        ignore_eos: true,
        ..Request::default()
    };
    sizes.into_iter().enumerate().map(request).collect()
}

#[test]
fn requests_served_together_get_what_each_gets_alone() {
    for selector in ["dense", "gate"] {
        let loaded = demo_with(selector);
        let expected: Vec<Outcome> = requests().into_iter().map(|request| alone(&loaded, request)).collect();
        for (slots, step_tokens) in [(1, 1), (3, 8), (4, 50), (8, 512)] {
            let mut engine =
                engine(&loaded, EngineOptions { slots, step_tokens, queue: 100, ..EngineOptions::default() });
            let ids: Vec<RequestId> = requests().into_iter().map(|r| engine.submit(r).unwrap()).collect();
            assert!(ids.is_sorted(), "in the order they came");
            let outcomes = serve(&mut engine);
            assert_eq!(outcomes.len(), expected.len());
            for (id, expected) in ids.iter().zip(&expected) {
                let (found, what) = (&outcomes[id], format!("{selector}, {slots} slots of {step_tokens}, {id:?}"));
                assert_eq!(found.content(), expected.content(), "{what}");
                let (found, expected) = (found.usage.unwrap(), expected.usage.unwrap());
                assert_eq!((found.prompt_tokens, found.new_tokens), (expected.prompt_tokens, expected.new_tokens));
                assert!((found.active_fraction - expected.active_fraction).abs() < 1e-3, "{what}: {found:?}");
                assert!(found.time_to_first_token.is_some(), "{what}");
            }
        }
    }
}

/// Requests that come while others run, as to a server.
#[test]
fn requests_may_come_at_any_time() {
    let loaded = demo_with("dense");
    let mut engine =
        engine(&loaded, EngineOptions { slots: 3, step_tokens: 16, queue: 100, ..EngineOptions::default() });
    let (mut left, mut outcomes, mut ids) = (requests().into_iter(), BTreeMap::new(), Vec::new());
    while ids.len() < requests().len() || !engine.is_idle() {
        if engine.free_slots() > 0
            && let Some(request) = left.next()
        {
            ids.push(engine.submit(request).unwrap());
        }
        for event in engine.step().unwrap() {
            outcomes.entry(request_of(&event)).or_insert_with(Outcome::default).take(event);
        }
    }
    assert!(engine.step().unwrap().is_empty(), "there is nothing to do");
    for (id, request) in ids.iter().zip(requests()) {
        assert_eq!(outcomes[id].content(), alone(&loaded, request).content(), "{id:?}");
    }
}

#[test]
fn the_text_is_that_of_the_tokens() {
    let loaded = demo_with("dense");
    let tokenizer = loaded.tokenizer().unwrap();
    for request in requests() {
        let prompt = request.prompt.clone();
        let outcome = alone(&loaded, request);
        let whole = tokenizer.decode(&[prompt.clone(), outcome.tokens.clone()].concat()).unwrap();
        assert_eq!(tokenizer.decode(&prompt).unwrap() + &outcome.text, whole);
    }
}

#[test]
fn a_request_ends_for_its_reason() {
    let loaded = demo_with("dense");
    let prompt = loaded.tokenizer().unwrap().encode("Once upon a time", true).unwrap();
    let request = || Request { prompt: prompt.clone(), max_new_tokens: 30, ..Request::default() };
    let whole = alone(&loaded, request());
    assert_eq!((&whole.finish, whole.tokens.len()), (&Some(Finish::MaxNewTokens), 30), "{whole:?}");

    // A stop string that begins and ends within words, and one that never comes.
    let words: Vec<&str> = whole.text.split_whitespace().collect();
    let stop = format!("{} {}", &words[3][1..], &words[4][..1]);
    let stops = vec!["never to be said".to_owned(), stop.clone()];
    let stopped = alone(&loaded, Request { stop: stops, ..request() });
    assert_eq!(stopped.finish, Some(Finish::StopString(stop.clone())));
    assert_eq!(stopped.text, whole.text[..whole.text.find(&stop).unwrap()]);
    assert!(whole.tokens.starts_with(&stopped.tokens) && stopped.tokens.len() < 30);

    // The most likely token of all is made an end.
    let eos = loaded.model.generation.eos_token_ids[0];
    let forced = SampleOptions { logit_bias: vec![(eos, 1000.0)], ..SampleOptions::default() };
    let ended = alone(&loaded, Request { sample: forced.clone(), ..request() });
    assert_eq!((ended.finish, ended.tokens, ended.text), (Some(Finish::EndOfSequence), vec![eos], String::new()));
    let ignored = alone(&loaded, Request { sample: forced, ignore_eos: true, ..request() });
    assert_eq!((ignored.finish, ignored.tokens), (Some(Finish::MaxNewTokens), vec![eos; 30]));

    let nothing = alone(&loaded, Request { max_new_tokens: 0, ..request() });
    assert_eq!(nothing.content(), (&[][..], "", &Finish::MaxNewTokens));

    // One token more than there is room for is known, and none after it.
    let small = small();
    let context = small.model.spec.context_length();
    let full = alone(&small, Request { prompt: vec![1; context - 4], max_new_tokens: 99, ..Request::default() });
    assert_eq!((full.finish, full.tokens.len()), (Some(Finish::ContextFull), 5));
    let just = alone(&small, Request { prompt: vec![1; context - 4], max_new_tokens: 5, ..Request::default() });
    assert_eq!((just.finish, just.tokens), (Some(Finish::MaxNewTokens), full.tokens));
}

#[test]
fn a_request_can_be_cancelled_wherever_it_is() {
    let loaded = demo_with("dense");
    let all = requests();
    let mut engine = engine(&loaded, EngineOptions { slots: 2, step_tokens: 32, queue: 9, ..EngineOptions::default() });
    // One decodes, one is in the middle of its prompt, one waits.
    let ids: Vec<RequestId> = [3, 1, 5, 6].iter().map(|&i| engine.submit(all[i].clone()).unwrap()).collect();
    let mut outcomes: BTreeMap<RequestId, Outcome> = BTreeMap::new();
    let mut take = |events: Vec<Event>| {
        events.into_iter().for_each(|event| outcomes.entry(request_of(&event)).or_default().take(event));
    };
    for _ in 0..3 {
        take(engine.step().unwrap());
    }
    for &id in &ids[..3] {
        engine.cancel(id).unwrap();
        engine.cancel(id).unwrap();
    }
    engine.cancel(RequestId(1000)).unwrap();
    while !engine.is_idle() {
        take(engine.step().unwrap());
    }
    for id in &ids[..3] {
        assert_eq!(outcomes[id].finish, Some(Finish::Cancelled), "{id:?}");
    }
    let [decoding, reading, waiting] = [0, 1, 2].map(|i| &outcomes[&ids[i]]);
    let whole = alone(&loaded, all[3].clone());
    assert!(!decoding.tokens.is_empty() && whole.tokens.starts_with(&decoding.tokens), "{decoding:?}");
    assert!(reading.tokens.is_empty() && reading.usage.unwrap().time_to_first_token.is_none(), "{reading:?}");
    assert!(waiting.tokens.is_empty(), "{waiting:?}");
    assert_eq!(outcomes[&ids[3]].content(), alone(&loaded, all[6].clone()).content());
    assert_eq!((engine.free_slots(), engine.session().sequences()), (2, 0));
}

#[test]
fn a_step_that_is_cancelled_can_be_tried_again() {
    let loaded = demo_with("dense");
    let mut engine =
        engine(&loaded, EngineOptions { slots: 3, step_tokens: 24, queue: 100, ..EngineOptions::default() });
    let ids: Vec<RequestId> = requests().into_iter().map(|r| engine.submit(r).unwrap()).collect();
    let cancel = engine.session().cancel().clone();
    let (mut outcomes, mut turn) = (BTreeMap::new(), 0);
    while !engine.is_idle() {
        turn += 1;
        if turn % 3 == 1 {
            cancel.cancel();
            assert!(matches!(engine.step(), Err(Error::Cancelled)));
            cancel.reset();
        }
        for event in engine.step().unwrap() {
            outcomes.entry(request_of(&event)).or_insert_with(Outcome::default).take(event);
        }
    }
    for (id, request) in ids.iter().zip(requests()) {
        assert_eq!(outcomes[id].content(), alone(&loaded, request).content(), "{id:?}");
    }
}

/// Requests that outgrow LongRoPE's original length, at different times.
#[test]
fn requests_cross_the_original_length() {
    let load = Load::new(goldens_dir().join("phi3-crossing-old")).cpu(exact()).format(dense_format());
    let loaded = load.open(|_, _, _| ()).unwrap();
    let (vocab, context) = (loaded.model.spec.vocab_size, loaded.model.spec.context_length());
    let prompts = [3, 9, 14, 2].map(|len| Random::new(len as u64).ids(vocab, len));
    let expected = prompts.clone().map(|prompt| {
        let mut session = session(&exact(), &loaded.model, Selector::dense(), 1, Some(DType::F32));
        greedy(&mut session, 0, &prompt, context + 1 - prompt.len())
    });
    for (slots, step_tokens) in [(1, 4), (2, 5), (4, 64)] {
        let mut engine = engine(&loaded, EngineOptions { slots, step_tokens, queue: 9, ..EngineOptions::default() });
        let requests = prompts.clone().map(|prompt| {
            let request = Request { prompt, max_new_tokens: usize::MAX, ignore_eos: true, ..Request::default() };
            engine.submit(request).unwrap()
        });
        let outcomes = serve(&mut engine);
        for (id, expected) in requests.iter().zip(&expected) {
            assert_eq!(outcomes[id].finish, Some(Finish::ContextFull));
            assert_eq!(&outcomes[id].tokens, expected, "{slots} slots of {step_tokens}, {id:?}");
        }
    }
}

#[test]
fn what_cannot_be_served_is_refused() {
    let loaded = small();
    let (vocab, context) = (loaded.model.spec.vocab_size as u32, loaded.model.spec.context_length());
    let mut engine = engine(&loaded, EngineOptions { slots: 1, step_tokens: 8, queue: 2, ..EngineOptions::default() });
    let good = || Request { prompt: vec![1, 2], max_new_tokens: 3, ..Request::default() };
    let sample = |sample| Request { sample, ..good() };
    for (request, says) in [
        (Request { prompt: vec![], ..good() }, "prompt: has no tokens"),
        (Request { prompt: vec![1; context], ..good() }, "65 tokens do not fit the context of 64"),
        (Request { prompt: vec![1, vocab], ..good() }, "id 101 is outside the model's vocabulary of 101"),
        (Request { stop: vec!["x".into()], ..good() }, "stop: needs a tokenizer"),
        (sample(SampleOptions { temperature: -1.0, ..SampleOptions::default() }), "temperature: must be 0 or above"),
        (sample(SampleOptions { logit_bias: vec![(vocab, 1.0)], ..SampleOptions::default() }), "logit_bias"),
    ] {
        let message = engine.submit(request).unwrap_err().to_string();
        assert!(message.contains(says), "{message:?} does not say {says:?}");
    }
    assert!(engine.is_idle());
    // One for the slot, and two that wait.
    let ids: Vec<RequestId> = (0..3).map(|_| engine.submit(good()).unwrap()).collect();
    let message = engine.submit(good()).unwrap_err().to_string();
    assert!(message.contains("queue: 3 requests are waiting, as many as may"), "{message}");
    let outcomes = serve(&mut engine);
    assert!(ids.iter().all(|id| outcomes[id].tokens == outcomes[&ids[0]].tokens && outcomes[id].tokens.len() == 3));
    engine.submit(good()).unwrap();

    for (options, says) in [
        (EngineOptions { slots: 0, ..EngineOptions::default() }, "slots: must be 1 or above"),
        (EngineOptions { slots: 9, step_tokens: 8, ..EngineOptions::default() }, "step_tokens: must be at least"),
    ] {
        let message = loaded.engine(KvOptions::default(), options).map(drop).unwrap_err().to_string();
        assert!(message.contains(says), "{message:?} does not say {says:?}");
    }
}

/// The log-probabilities that are told are those of the logits that a session gives.
#[test]
fn logprobs_are_told_where_they_are_wanted() {
    let loaded = small();
    let prompt = vec![5, 6, 7];
    let sample = SampleOptions { top_logprobs: 3, ..SampleOptions::default() };
    let request = Request { prompt: prompt.clone(), sample, max_new_tokens: 4, logprobs: true, ..Request::default() };
    let mut session = session(&exact(), &loaded.model, Selector::dense(), 1, Some(DType::F32));
    let mut logits = session.prefill(0, &prompt).unwrap().to_vec();
    let mut engine = engine(&loaded, EngineOptions::default());
    engine.submit(request.clone()).unwrap();
    for event in engine.events() {
        let Event::Token { token, logprobs, .. } = event.unwrap() else { break };
        let told = logprobs.expect("they were asked for");
        let log_sum = logits.iter().map(|&v| f64::from(v).exp()).sum::<f64>().ln();
        assert_eq!((told.token, told.top.len()), (token, 3));
        let expected = f64::from(logits[token as usize]) - log_sum;
        assert!((f64::from(told.logprob) - expected).abs() < 1e-4, "{told:?}, expected {expected}");
        logits = session.decode(&[(0, token)]).unwrap().to_vec();
    }
    assert_eq!(session.len(0), 7);
    engine.submit(Request { logprobs: false, ..request }).unwrap();
    let untold = |event| matches!(event, Ok(Event::Token { logprobs: None, .. } | Event::Finished { .. }));
    assert!(engine.events().all(untold));
}

#[test]
fn models_without_a_tokenizer_tell_tokens() {
    let loaded = small();
    assert!(loaded.tokenizer().unwrap_err().to_string().contains("tokenizer.json is missing"));
    let request = Request { prompt: vec![3, 4], max_new_tokens: 6, ..Request::default() };
    let (text, tokens, finish) = generate_text(&loaded, request);
    assert_eq!((text.as_str(), tokens.len(), finish), ("", 6, Finish::MaxNewTokens));
    assert_eq!(loaded.selector_spec, SelectorSpec::dense());
    assert!(Arc::ptr_eq(&loaded.cpu, &exact()));
}
