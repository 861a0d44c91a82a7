//! Requests that come, are cancelled and share steps at random: each gets the text that it gets alone, and ends once; the same bits
//! where its prompt is not cut, which decides how many rows run together, and nothing is gathered, which adds up the neurons that any
//! row needs.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use proptest::prelude::*;
use sparrow::engine::{Engine, EngineOptions, Event, Finish, Request, RequestId};
use sparrow::{KvOptions, Load, Loaded};
use sparrow_testing::*;

/// Steps of so many rows give bits that do not depend on what else is in them.
const EXACT_ROWS: usize = 8;

/// A request, the turn that it comes in, and the one that it is cancelled in.
#[derive(Debug, Clone)]
struct Arrival {
    start: usize,
    prompt: usize,
    max_new_tokens: usize,
    turn: usize,
    cancelled: Option<usize>,
}

fn arrivals() -> impl Strategy<Value = Vec<Arrival>> {
    let cancelled = prop_oneof![3 => Just(None), 1 => (0usize..40).prop_map(Some)];
    let arrival = (0usize..400, 1usize..30, 0usize..12, 0usize..30, cancelled).prop_map(
        |(start, prompt, max_new_tokens, turn, cancelled)| Arrival { start, prompt, max_new_tokens, turn, cancelled },
    );
    prop::collection::vec(arrival, 1..10)
}

/// What was told of a request.
#[derive(Debug, Clone, Default, PartialEq)]
struct Told {
    tokens: Vec<u32>,
    /// Bits of the chosen tokens' log-probabilities.
    logprobs: Vec<u32>,
    text: String,
    ends: Vec<Finish>,
}

impl Told {
    fn take(&mut self, event: Event) {
        match event {
            Event::Token { token, text, logprobs, .. } => {
                self.tokens.push(token);
                self.logprobs.push(logprobs.expect("they were asked for").logprob.to_bits());
                self.text.push_str(&text);
            }
            Event::Finished { finish, text, .. } => {
                self.text.push_str(&text);
                self.ends.push(finish);
            }
        }
    }
}

fn loaded(selector: &'static str) -> &'static Loaded {
    static MODELS: [OnceLock<Loaded>; 2] = [const { OnceLock::new() }; 2];
    let open = || Load::new(demo_dir()).cpu(exact()).selector(parse(selector)).open(|_, _, _| ()).unwrap();
    MODELS[usize::from(selector == "gate")].get_or_init(open)
}

fn request(arrival: &Arrival) -> Request {
    static IDS: OnceLock<Vec<u32>> = OnceLock::new();
    let ids = IDS.get_or_init(sample_ids);
    Request {
        prompt: ids[arrival.start..arrival.start + arrival.prompt].to_vec(),
        max_new_tokens: arrival.max_new_tokens,
        logprobs: true,
        ..Request::default()
    }
}

fn engine(selector: &'static str, slots: usize, step_tokens: usize) -> Engine {
    let options = EngineOptions { slots, step_tokens, queue: 100, ..EngineOptions::default() };
    loaded(selector).engine(KvOptions::default(), options).unwrap()
}

fn alone(selector: &'static str, arrival: &Arrival) -> Told {
    let mut engine = engine(selector, 1, EXACT_ROWS);
    engine.submit(request(arrival)).unwrap();
    let mut told = Told::default();
    engine.events().for_each(|event| told.take(event.unwrap()));
    told
}

fn together(selector: &'static str, arrivals: &[Arrival], slots: usize, step_tokens: usize) -> Vec<Told> {
    let mut engine = engine(selector, slots, step_tokens);
    let mut numbers: BTreeMap<RequestId, usize> = BTreeMap::new();
    let mut told = vec![Told::default(); arrivals.len()];
    let mut turn = 0;
    while numbers.len() < arrivals.len() || !engine.is_idle() {
        for (i, arrival) in arrivals.iter().enumerate() {
            if arrival.turn == turn {
                numbers.insert(engine.submit(request(arrival)).unwrap(), i);
            }
        }
        for (&id, &i) in &numbers {
            if arrivals[i].cancelled.is_some_and(|after| arrivals[i].turn + after == turn) {
                engine.cancel(id).unwrap();
            }
        }
        for event in engine.step().unwrap() {
            let (Event::Token { request, .. } | Event::Finished { request, .. }) = &event;
            told[numbers[request]].take(event);
        }
        turn += 1;
        assert!(turn < 5000, "requests starve");
    }
    assert_eq!((engine.free_slots(), engine.session().sequences()), (slots, 0), "slots are free at the end");
    told
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_request_gets_what_it_gets_alone(
        arrivals in arrivals(),
        slots in 1usize..=EXACT_ROWS,
        more in 0usize..EXACT_ROWS,
        sparse in any::<bool>(),
        whole in any::<bool>(),
    ) {
        let (selector, step_tokens) = (if sparse { "gate" } else { "dense" }, (slots + more).min(EXACT_ROWS));
        let (mut arrivals, exact) = (arrivals, whole && !sparse);
        if whole {
            arrivals.iter_mut().for_each(|arrival| arrival.prompt = 1);
        }
        let found = together(selector, &arrivals, slots, step_tokens);
        for (found, arrival) in found.iter().zip(&arrivals) {
            prop_assert_eq!(found.ends.len(), 1, "each ends once");
            let expected = alone(selector, arrival);
            if found.ends[0] == Finish::Cancelled {
                prop_assert!(arrival.cancelled.is_some());
                prop_assert!(expected.tokens.starts_with(&found.tokens) && expected.text.starts_with(&found.text));
                prop_assert!(!exact || expected.logprobs.starts_with(&found.logprobs));
            } else {
                prop_assert_eq!((&found.tokens, &found.text, &found.ends), (&expected.tokens, &expected.text, &expected.ends));
                prop_assert!(!exact || found.logprobs == expected.logprobs, "other bits: {:?}, {:?}", found, expected);
            }
        }
    }
}
