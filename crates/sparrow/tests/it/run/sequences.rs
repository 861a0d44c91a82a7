//! Sequences that come and go, are cut, copied and put in another order: each is what computing it anew gives, bit for bit.

use std::sync::Arc;

use proptest::prelude::*;
use proptest::sample::Index;
use sparrow::session::{Logits, Segment};
use sparrow::{KvOptions, Model, Selector, Session, SessionOptions};
use sparrow_testing::*;

use super::{caches, model};

const CONTEXT: usize = 200;

/// What was done to a sequence since it was empty.
#[derive(Debug, Clone)]
enum Deed {
    Append(Vec<u32>),
    Cut(usize),
}

/// A session, and how each of its sequences can be made again.
struct Recorded {
    session: Session,
    deeds: Vec<Option<Vec<Deed>>>,
    random: Random,
}

fn empty(model: &Arc<Model>, kv: KvOptions, sequences: usize, capacity: usize) -> Session {
    Session::new(model.clone(), cpu(), Selector::dense(), SessionOptions { sequences, capacity, kv }).unwrap()
}

impl Recorded {
    fn new(model: &Arc<Model>, kv: KvOptions) -> Self {
        Recorded { session: empty(model, kv, 0, 0), deeds: Vec::new(), random: Random::new(9) }
    }

    fn add(&mut self, capacity: usize) -> usize {
        let number = self.session.add_sequence(capacity).unwrap();
        self.deeds.resize(self.deeds.len().max(number + 1), None);
        assert!(self.deeds[number].is_none(), "{number} is taken");
        assert!(self.deeds[..number].iter().all(Option::is_some), "{number} is not the lowest");
        self.deeds[number] = Some(Vec::new());
        number
    }

    /// Appends so many random tokens to each of the sequences, in one step.
    fn append(&mut self, pieces: &[(usize, usize)]) {
        let vocab = self.session.model().spec.vocab_size;
        let tokens: Vec<(usize, Vec<u32>)> =
            pieces.iter().map(|&(sequence, count)| (sequence, self.random.ids(vocab, count))).collect();
        let segments: Vec<Segment> =
            tokens.iter().map(|(s, tokens)| Segment { sequence: *s, tokens, logits: Logits::Last }).collect();
        self.session.step(&segments).unwrap();
        for (sequence, tokens) in tokens {
            self.deeds[sequence].as_mut().unwrap().push(Deed::Append(tokens));
        }
    }

    fn cut(&mut self, sequence: usize, len: usize) {
        self.session.truncate(sequence, len).unwrap();
        self.deeds[sequence].as_mut().unwrap().push(Deed::Cut(len));
    }

    fn copy(&mut self, from: usize, to: usize, len: usize) {
        self.session.copy_prefix(from, to, len).unwrap();
        self.deeds[to] = self.deeds[from].clone();
        self.deeds[to].as_mut().unwrap().push(Deed::Cut(len));
    }

    fn reorder(&mut self, order: &[usize]) {
        self.session.reorder(order).unwrap();
        let made: Vec<_> = order.iter().map(|&from| self.deeds[from].clone()).collect();
        self.deeds[..order.len()].clone_from_slice(&made);
    }

    /// Every sequence has the tokens that it was given, and goes on as one that was made the same way alone.
    fn check(&mut self) {
        let (model, kv) = (self.session.model().clone(), *self.session.kv());
        assert_eq!(self.session.sequences(), self.deeds.iter().flatten().count());
        for (number, deeds) in self.deeds.iter().enumerate() {
            let Some(deeds) = deeds else {
                assert_eq!((self.session.len(number), self.session.capacity(number)), (0, 0));
                continue;
            };
            let mut alone = empty(&model, kv, 1, CONTEXT);
            let mut tokens: Vec<u32> = Vec::new();
            for deed in deeds {
                match deed {
                    Deed::Append(more) => {
                        alone.prefill(0, more).unwrap();
                        tokens.extend(more);
                    }
                    Deed::Cut(len) => {
                        alone.truncate(0, *len).unwrap();
                        tokens.truncate(*len);
                    }
                }
            }
            assert_eq!(self.session.tokens(number), tokens, "sequence {number}");
            let len = tokens.len();
            if len < self.session.capacity(number) {
                let expected = alone.decode(&[(0, 7)]).unwrap();
                let found = self.session.decode(&[(number, 7)]).unwrap();
                assert!(found == expected, "sequence {number}, {deeds:?}: {:e} off", difference(found, expected));
                self.session.truncate(number, len).unwrap();
            }
        }
    }
}

#[test]
fn sequences_come_go_and_grow_while_others_run() {
    for kv in caches() {
        let mut all = Recorded::new(&model(CONTEXT), kv);
        assert_eq!((all.add(100), all.add(12), all.add(CONTEXT)), (0, 1, 2));
        all.append(&[(0, 80)]);
        all.append(&[(1, 5), (2, 3)]);
        all.check();
        let before = all.session.kv_bytes();
        all.session.remove_sequence(1).unwrap();
        all.deeds[1] = None;
        assert!(all.session.kv_bytes() < before && all.session.sequences() == 2);
        all.append(&[(0, 4), (2, 4)]);
        all.check();
        // The number is free again, and nothing is left of what was there.
        assert_eq!(all.add(9), 1);
        all.append(&[(2, 1), (1, 6), (0, 1)]);
        all.check();
        all.session.grow(1, 150).unwrap();
        assert_eq!(all.session.capacity(1), 150);
        all.append(&[(1, 140)]);
        all.append(&[(0, 3), (1, 4)]);
        all.check();
        // Room is never taken away.
        all.session.grow(1, 10).unwrap();
        assert_eq!((all.session.capacity(1), all.session.len(1)), (150, 150));
        (0..3).for_each(|number| assert!(all.session.remove_sequence(number).unwrap().tokens > 0));
        assert_eq!((all.session.sequences(), all.session.is_empty()), (0, true));
        all.deeds = vec![None; 3];
        assert_eq!(all.add(CONTEXT), 0);
        all.append(&[(0, 70)]);
        all.check();
    }
}

#[test]
fn room_that_is_given_back_takes_no_memory() {
    for kv in caches() {
        let mut session = empty(&model(CONTEXT), kv, 0, 0);
        assert_eq!(session.kv_bytes(), 0);
        session.add_sequence(100).unwrap();
        let one = session.kv_bytes();
        session.add_sequence(100).unwrap();
        assert_eq!(session.kv_bytes(), 2 * one);
        session.remove_sequence(0).unwrap();
        assert_eq!(session.kv_bytes(), one);
        session.remove_sequence(1).unwrap();
        assert_eq!(session.kv_bytes(), 0);
        session.add_sequence(50).unwrap();
        session.grow(0, 100).unwrap();
        assert_eq!(session.kv_bytes(), one);
    }
}

fn config(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config(32))]

    /// Permutations, and orders that want one sequence several times and others not at all.
    #[test]
    fn any_order_is_taken(
        lens in prop::collection::vec(0..120usize, 1..7),
        wanted in prop::collection::vec(any::<Index>(), 1..7),
        permutation in any::<bool>(),
        sparse in any::<bool>(),
    ) {
        let mut all = Recorded::new(&model(CONTEXT), caches()[usize::from(sparse)]);
        for &len in &lens {
            let number = all.add(CONTEXT);
            if len > 0 {
                all.append(&[(number, len)]);
            }
        }
        let n = lens.len();
        let order: Vec<usize> = match permutation {
            // Where each would be put next, of those that are left.
            true => {
                let mut left: Vec<usize> = (0..n).collect();
                (0..n).map(|i| left.remove(wanted[i % wanted.len()].index(left.len()))).collect()
            }
            false => wanted.iter().take(n).map(|i| i.index(wanted.len().min(n))).collect(),
        };
        all.reorder(&order);
        all.check();
        // They are of their own: what one goes on with is nothing to another.
        let few: Vec<(usize, usize)> = (0..n).map(|number| (number, 1)).collect();
        all.append(&few);
        all.check();
    }
}

/// One thing to do, and to which sequences, if there are any.
#[derive(Debug, Clone)]
enum Act {
    Add(usize),
    Remove(Index),
    Grow(Index, usize),
    /// Sequences and tokens for each, of [`FEW`] rows at most.
    AppendFew(Vec<(Index, usize)>),
    AppendMany(Index, usize),
    Cut(Index, Index),
    Copy(Index, Index, Index),
    Reorder(Vec<Index>),
}

/// Rows up to which results do not depend on how many there are.
const FEW: usize = 8;

fn act() -> impl Strategy<Value = Act> {
    let some = any::<Index>;
    prop_oneof![
        2 => (1..=CONTEXT).prop_map(Act::Add),
        1 => some().prop_map(Act::Remove),
        1 => (some(), 1..=CONTEXT).prop_map(|(s, capacity)| Act::Grow(s, capacity)),
        6 => prop::collection::vec((some(), 1..=4usize), 1..=4).prop_map(Act::AppendFew),
        3 => (some(), 9..110usize).prop_map(|(s, count)| Act::AppendMany(s, count)),
        2 => (some(), some()).prop_map(|(s, len)| Act::Cut(s, len)),
        2 => (some(), some(), some()).prop_map(|(from, to, len)| Act::Copy(from, to, len)),
        2 => prop::collection::vec(some(), 1..5).prop_map(Act::Reorder),
    ]
}

/// Does it, as far as it can be done.
fn perform(all: &mut Recorded, act: &Act) {
    let live: Vec<usize> = (0..all.deeds.len()).filter(|&i| all.deeds[i].is_some()).collect();
    if live.is_empty() && !matches!(act, Act::Add(_)) {
        return;
    }
    let one = |index: &Index| live[index.index(live.len())];
    let room = |all: &Recorded, s: usize| all.session.capacity(s) - all.session.len(s);
    match act {
        Act::Add(capacity) => drop(all.add(*capacity)),
        Act::Remove(s) => {
            all.session.remove_sequence(one(s)).unwrap();
            all.deeds[one(s)] = None;
        }
        Act::Grow(s, capacity) => {
            let before = all.session.capacity(one(s));
            all.session.grow(one(s), *capacity).unwrap();
            assert_eq!(all.session.capacity(one(s)), before.max(*capacity));
        }
        Act::AppendFew(wanted) => {
            let (mut pieces, mut left): (Vec<(usize, usize)>, usize) = (Vec::new(), FEW);
            for (s, count) in wanted {
                let (s, count) = (one(s), (*count).min(left).min(room(all, one(s))));
                if count > 0 && pieces.iter().all(|piece| piece.0 != s) {
                    pieces.push((s, count));
                    left -= count;
                }
            }
            all.append(&pieces);
        }
        Act::AppendMany(s, count) => {
            let count = (*count).min(room(all, one(s)));
            if count > 0 {
                all.append(&[(one(s), count)]);
            }
        }
        Act::Cut(s, len) => all.cut(one(s), len.index(all.session.len(one(s)) + 1)),
        Act::Copy(from, to, len) => {
            let most = all.session.len(one(from)).min(all.session.capacity(one(to)));
            all.copy(one(from), one(to), len.index(most + 1));
        }
        Act::Reorder(wanted) => {
            // Of the sequences before the first gap.
            let first = all.deeds.iter().take_while(|deeds| deeds.is_some()).count();
            let n = wanted.len().min(first);
            let order: Vec<usize> = wanted[..n].iter().map(|i| i.index(n)).collect();
            let fits = |(to, &from): (usize, &usize)| all.session.len(from) <= all.session.capacity(to);
            if order.iter().enumerate().all(fits) {
                all.reorder(&order);
            } else {
                assert!(all.session.reorder(&order).is_err());
            }
        }
    }
}

proptest! {
    #![proptest_config(config(48))]

    #[test]
    fn whatever_is_done_sequences_are_what_computing_them_anew_gives(
        acts in prop::collection::vec(act(), 1..24),
        sparse in any::<bool>(),
    ) {
        let mut all = Recorded::new(&model(CONTEXT), caches()[usize::from(sparse)]);
        all.add(CONTEXT);
        acts.iter().for_each(|act| perform(&mut all, act));
        all.check();
    }
}

/// Room and figures belong to a number, whatever sequence it has.
#[test]
fn reordering_keeps_room_and_figures() {
    let mut session = empty(&model(CONTEXT), caches()[0], 0, CONTEXT);
    for (number, capacity) in [40, 60, 50].into_iter().enumerate() {
        assert_eq!(session.add_sequence(capacity).unwrap(), number);
        session.prefill(number, &[1, 2, 3, 4][..number + 1]).unwrap();
    }
    let figures = |session: &Session| [0, 1, 2].map(|number| *session.sequence_stats(number).unwrap());
    let before = figures(&session);
    for order in [[1, 0, 2], [2, 0, 1], [1, 1, 0]] {
        session.reorder(&order).unwrap();
        assert_eq!(figures(&session), before);
        let room = [0, 1, 2].map(|number| session.capacity(number));
        assert!(room.iter().zip([40, 60, 50]).all(|(room, given)| *room >= given), "{room:?}");
    }
}
