//! Single cases, and a naive model.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

fn scheduler(slots: usize, step_tokens: usize, queue: usize) -> Scheduler {
    Scheduler::new(Limits::new(slots, step_tokens, queue).unwrap())
}

fn schedule(scheduler: &Scheduler) -> Vec<Piece> {
    let mut pieces = Vec::new();
    scheduler.schedule(&mut pieces);
    pieces
}

/// Runs a step; what it was, as request, slot, tokens, and whether it samples.
fn step(scheduler: &mut Scheduler) -> Vec<(u64, usize, usize, bool)> {
    let pieces = schedule(scheduler);
    pieces.iter().for_each(|&piece| scheduler.ran(piece));
    pieces.iter().map(|p| (p.request.0, p.slot, p.tokens, p.samples)).collect()
}

#[test]
fn decoding_comes_first_and_prompts_get_the_rest_in_order() {
    let mut s = scheduler(3, 10, 4);
    for (id, tokens) in [(1, 4), (2, 12), (3, 5), (4, 1)] {
        s.submit(RequestId(id), tokens).unwrap();
    }
    assert_eq!((s.waiting(), s.running(), s.free_slots(), s.is_idle()), (4, 0, 3, false));
    assert_eq!(step(&mut s), [(1, 0, 4, true), (2, 1, 6, false)]);
    assert_eq!(step(&mut s), [(1, 0, 1, true), (2, 1, 6, true), (3, 2, 3, false)]);
    assert_eq!((s.waiting(), s.running(), s.free_slots()), (1, 3, 0));
    assert_eq!(step(&mut s), [(1, 0, 1, true), (2, 1, 1, true), (3, 2, 2, true)]);
    assert_eq!(s.finish(RequestId(2)), 1);
    assert_eq!(step(&mut s), [(1, 0, 1, true), (3, 2, 1, true), (4, 1, 1, true)]);
    for id in [1, 3, 4] {
        s.finish(RequestId(id));
    }
    assert!(s.is_idle() && s.free_slots() == 3 && step(&mut s).is_empty());
}

#[test]
fn prompts_advance_beside_as_many_as_there_are_slots() {
    let mut s = scheduler(3, 3, 0);
    s.submit(RequestId(1), 1).unwrap();
    s.submit(RequestId(2), 1).unwrap();
    s.submit(RequestId(3), 3).unwrap();
    assert_eq!(step(&mut s), [(1, 0, 1, true), (2, 1, 1, true), (3, 2, 1, false)]);
    assert_eq!(step(&mut s), [(1, 0, 1, true), (2, 1, 1, true), (3, 2, 1, false)]);
    assert_eq!(step(&mut s), [(1, 0, 1, true), (2, 1, 1, true), (3, 2, 1, true)]);
}

#[test]
fn the_queue_is_bounded() {
    let mut s = scheduler(2, 8, 1);
    (1..=3).for_each(|id| s.submit(RequestId(id), 20).unwrap());
    assert_eq!(s.submit(RequestId(4), 1), Err(QueueFull { waiting: 3 }));
    step(&mut s);
    assert_eq!(s.submit(RequestId(4), 1), Err(QueueFull { waiting: 2 }));
    assert_eq!(s.cancel(RequestId(3)), None);
    assert_eq!(s.submit(RequestId(4), 1), Ok(()));
    // Without a queue free slots alone take requests.
    let mut s = scheduler(1, 1, 0);
    assert_eq!(s.submit(RequestId(1), 1), Ok(()));
    let full = s.submit(RequestId(2), 1).unwrap_err();
    assert_eq!(full.to_string(), "1 requests are waiting, as many as may: try again later");
}

#[test]
fn a_failed_step_is_scheduled_again() {
    let mut s = scheduler(2, 6, 4);
    (1..=3).for_each(|id| s.submit(RequestId(id), 4).unwrap());
    let first = schedule(&s);
    assert_eq!(schedule(&s), first);
    // One piece of it did run, though not the first.
    s.ran(first[1]);
    assert_eq!(step(&mut s), [(2, 1, 2, true), (1, 0, 4, true)]);
}

#[test]
fn ended_requests_are_left_out() {
    let mut s = scheduler(2, 6, 4);
    (1..=3).for_each(|id| s.submit(RequestId(id), 2).unwrap());
    let pieces = schedule(&s);
    assert_eq!(s.cancel(RequestId(1)), None);
    pieces.iter().for_each(|&piece| s.ran(piece));
    assert_eq!((s.waiting(), s.running()), (1, 1));
    assert_eq!((s.cancel(RequestId(2)), s.cancel(RequestId(2))), (Some(pieces[1].slot), None));
    assert_eq!(step(&mut s).len(), 1);
}

#[test]
fn a_restart_keeps_slot_and_place() {
    let mut s = scheduler(3, 8, 4);
    (1..=3).for_each(|id| s.submit(RequestId(id), if id == 2 { 9 } else { 2 }).unwrap());
    assert_eq!(step(&mut s), [(1, 0, 2, true), (2, 1, 6, false)]);
    s.restart(RequestId(1), 20);
    assert_eq!(step(&mut s), [(1, 0, 7, false), (2, 1, 1, false)]);
    assert_eq!(step(&mut s), [(1, 0, 7, false), (2, 1, 1, false)]);
    assert_eq!(step(&mut s), [(2, 1, 1, true), (1, 0, 6, true), (3, 2, 1, false)]);
    assert_eq!(step(&mut s), [(1, 0, 1, true), (2, 1, 1, true), (3, 2, 1, true)]);
}

#[test]
fn limits_that_leave_somebody_out_are_refused() {
    let message = |slots, step_tokens| Limits::new(slots, step_tokens, 0).unwrap_err().to_string();
    assert!(message(0, 4).starts_with("slots: must be 1 or above"));
    assert!(message(8, 7).starts_with("step_tokens: must be at least the number of slots, 8"));
}

#[derive(Debug, Clone)]
enum Action {
    Submit(usize),
    /// Every piece ran whose bit is set.
    Step(u32),
    Finish(usize),
    Cancel(usize),
    Restart(usize, usize),
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        3 => (1usize..40).prop_map(Action::Submit),
        4 => prop_oneof![4 => Just(u32::MAX), 1 => Just(0), 1 => any::<u32>()].prop_map(Action::Step),
        1 => any::<usize>().prop_map(Action::Finish),
        1 => any::<usize>().prop_map(Action::Cancel),
        1 => (any::<usize>(), 1usize..40).prop_map(|(i, tokens)| Action::Restart(i, tokens)),
    ]
}

/// Id, slot and tokens to compute of every request, in the order of arrival.
type Naive = Vec<(RequestId, Option<usize>, usize)>;

/// Deals out a step token by token.
fn deal(requests: &Naive, limits: Limits) -> BTreeMap<RequestId, usize> {
    let mut dealt: BTreeMap<_, _> = requests.iter().filter(|r| r.1.is_some()).map(|r| (r.0, 1)).collect();
    while dealt.values().sum::<usize>() < limits.step_tokens {
        let wants = |r: &&(RequestId, Option<usize>, usize)| dealt.get(&r.0).copied().unwrap_or(0) < r.2;
        let fits = |r: &&(RequestId, Option<usize>, usize)| dealt.contains_key(&r.0) || dealt.len() < limits.slots;
        let runs = requests.iter().filter(|r| r.1.is_some()).find(wants);
        let Some(next) = runs.or_else(|| requests.iter().filter(|r| r.1.is_none()).filter(fits).find(wants)) else {
            break;
        };
        *dealt.entry(next.0).or_default() += 1;
    }
    dealt
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn it_does_what_a_naive_model_does(
        slots in 1usize..6,
        room in 0usize..30,
        queue in 0usize..5,
        actions in proptest::collection::vec(action(), 1..120),
    ) {
        let limits = Limits::new(slots, slots + room, queue).unwrap();
        let (mut s, mut naive) = (Scheduler::new(limits), Naive::new());
        for (id, action) in actions.into_iter().enumerate() {
            let running: Vec<_> = naive.iter().filter(|r| r.1.is_some()).map(|r| r.0).collect();
            match action {
                Action::Submit(tokens) => {
                    let id = RequestId(id as u64);
                    let fits = naive.len() < slots + queue;
                    prop_assert_eq!(s.submit(id, tokens).is_ok(), fits);
                    naive.extend(fits.then_some((id, None, tokens)));
                }
                Action::Step(ran) => {
                    let pieces = schedule(&s);
                    let dealt = deal(&naive, limits);
                    prop_assert_eq!(pieces.len(), dealt.len());
                    let taken: BTreeSet<_> = pieces.iter().map(|p| p.slot).collect();
                    prop_assert!(taken.len() == pieces.len() && taken.iter().all(|&slot| slot < slots));
                    for (i, &piece) in pieces.iter().enumerate() {
                        let r = naive.iter_mut().find(|r| r.0 == piece.request).unwrap();
                        prop_assert_eq!(piece.tokens, dealt[&r.0]);
                        prop_assert_eq!(piece.samples, piece.tokens == r.2);
                        prop_assert!(r.1.is_none_or(|slot| slot == piece.slot));
                        if ran >> (i % 32) & 1 == 1 {
                            s.ran(piece);
                            *r = (r.0, Some(piece.slot), (r.2 - piece.tokens).max(1));
                        }
                    }
                }
                Action::Finish(i) if !running.is_empty() => {
                    let id = running[i % running.len()];
                    let at = naive.iter().position(|r| r.0 == id).unwrap();
                    prop_assert_eq!(Some(s.finish(id)), naive.remove(at).1);
                }
                Action::Cancel(i) if !naive.is_empty() => {
                    let (id, slot, _) = naive.remove(i % naive.len());
                    prop_assert_eq!(s.cancel(id), slot);
                }
                Action::Restart(i, tokens) if !running.is_empty() => {
                    let id = running[i % running.len()];
                    s.restart(id, tokens);
                    naive.iter_mut().find(|r| r.0 == id).unwrap().2 = tokens;
                }
                _ => {}
            }
            let running = naive.iter().filter(|r| r.1.is_some()).count();
            prop_assert_eq!((s.running(), s.waiting()), (running, naive.len() - running));
            prop_assert_eq!((s.free_slots(), s.is_idle()), (slots - running, naive.is_empty()));
        }
    }
}
