//! The weight cache against a model of sets: what is in the pool, where, and how little was moved to get it there.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use sparrow::internals::residency::{CacheSpec, Load, Policy, Traffic, WeightCache};

const NEURON_BYTES: usize = 70;

fn mask(neurons: usize, wanted: &BTreeSet<u32>) -> Vec<u64> {
    let mut mask = vec![0; neurons.div_ceil(64)];
    wanted.iter().for_each(|&i| mask[i as usize / 64] |= 1 << (i % 64));
    mask
}

fn set(mask: &[u64]) -> BTreeSet<u32> {
    (0..mask.len() as u32 * 64).filter(|&i| mask[i as usize / 64] >> (i % 64) & 1 == 1).collect()
}

/// Bytes that no other neuron has.
fn content(neuron: u32) -> [u8; NEURON_BYTES] {
    std::array::from_fn(|i| (neuron.wrapping_mul(2_654_435_761).rotate_left(i as u32 % 32) >> 7) as u8 ^ i as u8)
}

fn write(loads: &[Load], pool: &mut [u8], slot_bytes: usize) {
    for load in loads {
        pool[load.slot as usize * slot_bytes..][..NEURON_BYTES].copy_from_slice(&content(load.neuron));
    }
}

/// Slots and neurons are each other's inverse, slots are packed, and every slot holds its neuron.
fn check_maps(cache: &WeightCache, neurons: usize) {
    let resident = set(cache.resident());
    let (neuron_of, slot_of) = cache.maps();
    assert!(neuron_of.len() <= cache.slots() && neuron_of.len() == cache.len());
    assert_eq!(neuron_of.iter().copied().collect::<BTreeSet<_>>(), resident);
    assert_eq!(neuron_of.len(), resident.len(), "a neuron has two slots");
    for neuron in 0..neurons as u32 {
        let slot = slot_of(neuron);
        assert_eq!(slot.is_some(), resident.contains(&neuron));
        assert!(slot.is_none_or(|slot| neuron_of[slot as usize] == neuron));
    }
}

/// A cache as a map from neurons to the step that last wanted them.
struct Naive {
    policy: Policy,
    slots: usize,
    step: u64,
    last: BTreeMap<u32, u64>,
}

impl Naive {
    /// After a step that fits.
    fn step(&mut self, wanted: &BTreeSet<u32>) {
        self.step += 1;
        self.last.extend(wanted.iter().map(|&neuron| (neuron, self.step)));
        let window = match self.policy {
            Policy::Exact => 1,
            Policy::Window(steps) => u64::from(steps),
            Policy::Lru => self.step + 1,
        };
        self.last.retain(|_, last| *last + window > self.step);
        while self.last.len() > self.slots {
            let (&oldest, _) = self.last.iter().min_by_key(|&(&neuron, &last)| (last, neuron)).unwrap();
            self.last.remove(&oldest);
        }
    }
}

fn policies() -> impl Strategy<Value = Policy> {
    prop_oneof![Just(Policy::Exact), (1u32..5).prop_map(Policy::Window), Just(Policy::Lru)]
}

/// Steps whose active sets drift, as those of consecutive tokens do; now and then another text, or nothing.
fn steps(neurons: u32) -> impl Strategy<Value = Vec<BTreeSet<u32>>> {
    let any_set = prop::collection::btree_set(0..neurons, 0..neurons as usize);
    let change = (prop::collection::vec(0..neurons, 0..20), 0..10u8, any_set.clone());
    (any_set, prop::collection::vec(change, 1..24)).prop_map(|(first, changes)| {
        let mut sets = vec![first];
        for (toggled, kind, other) in changes {
            let mut next = sets[sets.len() - 1].clone();
            match kind {
                0 => next = other,
                1 => next.clear(),
                _ => toggled.iter().for_each(|i| {
                    if !next.remove(i) {
                        next.insert(*i);
                    }
                }),
            }
            sets.push(next);
        }
        sets
    })
}

proptest! {
    #[test]
    fn holds_what_its_policy_says_and_moves_no_more_than_it_must(
        (neurons, slots, policy, steps) in (1u32..200).prop_flat_map(|n| (Just(n as usize), 1..=n as usize, policies(), steps(n)))
    ) {
        let mut cache = WeightCache::new(neurons, NEURON_BYTES, slots, policy).unwrap();
        prop_assert_eq!(cache.slot_bytes(), 128);
        let mut naive = Naive { policy, slots, step: 0, last: BTreeMap::new() };
        for wanted in &steps {
            let before = set(cache.resident());
            let places = cache.maps().0.to_vec();
            let traffic = cache.traffic();
            let slot_bytes = cache.slot_bytes();
            cache.begin(&mask(neurons, wanted));
            let (mut served, mut passes) = (BTreeSet::new(), 0);
            loop {
                let pass = cache.next_pass(|loads, pool| {
                    assert!(loads.is_sorted_by_key(|load| load.neuron));
                    write(loads, pool, slot_bytes);
                    Ok::<(), ()>(())
                });
                let Some(pass) = pass.unwrap() else { break };
                passes += 1;
                prop_assert!(pass.neurons.is_sorted() && pass.neurons.len() == pass.slots.len());
                prop_assert_eq!(pass.pool.as_ptr() as usize % 64, 0);
                for (&neuron, &slot) in pass.neurons.iter().zip(pass.slots) {
                    prop_assert!(served.insert(neuron), "served twice");
                    prop_assert_eq!(&pass.pool[slot as usize * slot_bytes..][..NEURON_BYTES], &content(neuron));
                }
                check_maps(&cache, neurons);
            }
            prop_assert_eq!(&served, wanted);
            prop_assert_eq!(passes == 1, wanted.len() <= slots);
            let resident = set(cache.resident());
            let now = cache.traffic();
            if passes == 1 {
                naive.step(wanted);
                prop_assert_eq!(&resident, &naive.last.keys().copied().collect::<BTreeSet<_>>());
                // The lower bound: what is wanted and not there.
                prop_assert_eq!(now.loaded - traffic.loaded, wanted.difference(&before).count() as u64);
                prop_assert_eq!(now.hits - traffic.hits, wanted.intersection(&before).count() as u64);
                // Only what lies beyond the new end is moved.
                let beyond = places.iter().skip(cache.len()).filter(|neuron| resident.contains(neuron)).count();
                prop_assert_eq!(now.shifted - traffic.shifted, beyond as u64);
            } else {
                // In passes nothing is loaded twice either.
                prop_assert!(now.loaded - traffic.loaded <= wanted.len() as u64);
                naive.step += 1;
                naive.last.extend(wanted.iter().map(|&neuron| (neuron, naive.step)));
                naive.last.retain(|neuron, _| resident.contains(neuron));
            }
        }
    }

    #[test]
    fn a_failed_load_leaves_an_empty_cache_that_works(
        (neurons, slots, policy, steps) in (1u32..100).prop_flat_map(|n| (Just(n as usize), 1..=n as usize, policies(), steps(n))),
        fail_at in 0usize..6,
    ) {
        let mut cache = WeightCache::new(neurons, NEURON_BYTES, slots, policy).unwrap();
        let slot_bytes = cache.slot_bytes();
        let mut loads_done = 0;
        for wanted in &steps {
            cache.begin(&mask(neurons, wanted));
            loop {
                let load = |loads: &[Load], pool: &mut [u8]| {
                    loads_done += 1;
                    // Half of it is written when it fails.
                    write(&loads[..loads.len() / 2], pool, slot_bytes);
                    if loads_done == fail_at + 1 {
                        return Err("disk");
                    }
                    write(loads, pool, slot_bytes);
                    Ok(())
                };
                match cache.next_pass(load) {
                    Ok(None) => break,
                    Ok(Some(pass)) => for (&neuron, &slot) in pass.neurons.iter().zip(pass.slots) {
                        prop_assert_eq!(&pass.pool[slot as usize * slot_bytes..][..NEURON_BYTES], &content(neuron));
                    },
                    Err(error) => {
                        prop_assert_eq!(error, "disk");
                        prop_assert!(cache.is_empty() && set(cache.resident()).is_empty());
                    }
                }
                check_maps(&cache, neurons);
            }
        }
    }
}

#[test]
fn additions_are_written_over_removals() {
    let mut cache = WeightCache::new(100, NEURON_BYTES, 4, Policy::Exact).unwrap();
    let mut step = |wanted: &[u32]| {
        let mut loaded = Vec::new();
        cache.begin(&mask(100, &wanted.iter().copied().collect()));
        cache
            .next_pass(|loads, _| {
                loaded = loads.to_vec();
                Ok::<(), ()>(())
            })
            .unwrap();
        (loaded, cache.maps().0.to_vec(), cache.traffic())
    };
    let load = |neuron, slot| Load { neuron, slot };
    assert_eq!(step(&[3, 10, 70]).0, [load(3, 0), load(10, 1), load(70, 2)]);
    // One leaves, one comes into its slot; another is appended.
    let (loads, slots, _) = step(&[3, 70, 80, 90]);
    assert_eq!((loads, slots), (vec![load(80, 1), load(90, 3)], vec![3, 80, 70, 90]));
    // Surplus removals: the last slot moves into the first gap, and nothing else moves.
    let (loads, slots, traffic) = step(&[80, 90]);
    assert_eq!((loads, slots), (vec![], vec![90, 80]));
    assert_eq!(traffic, Traffic { hits: 4, loaded: 5, shifted: 1 });
    let (loads, slots, traffic) = step(&[5, 80]);
    assert_eq!((loads, slots), (vec![load(5, 0)], vec![5, 80]));
    assert_eq!(traffic, Traffic { hits: 5, loaded: 6, shifted: 1 });
}

#[test]
fn specs_are_read_and_refused() {
    for (text, expected) in [
        ("0.2", "0.2,lru"),
        ("1", "1,lru"),
        ("0.5,exact", "0.5,exact"),
        ("0.25,window=4", "0.25,window=4"),
        ("0.2,prefer=1", "0.2,lru"),
        ("0.2,prefer=2", "0.2,lru,prefer=2"),
        ("0.2,window=3,prefer=1.5,mmap", "0.2,window=3,prefer=1.5,mmap"),
    ] {
        assert_eq!(text.parse::<CacheSpec>().unwrap().to_string(), expected);
    }
    for (text, says) in [
        ("0", "above 0 and at most 1, found 0"),
        ("1.01", "found 1.01"),
        ("-0.1", "found -0.1"),
        ("NaN", "found NaN"),
        ("much", "must be a number, found \"much\""),
        ("", "must be a number"),
        ("0.2,window=0", "window=N (N at least 1)"),
        ("0.2,fifo", "unknown cache policy \"fifo\""),
        ("0.2,prefer=0.9", "prefer=0.9: must be a number, 1 or above"),
        ("0.2,prefer=inf", "must be a number"),
        ("0.2,prefer=", "must be a number"),
    ] {
        let message = text.parse::<CacheSpec>().unwrap_err();
        assert!(message.contains(says), "{text}: {message}");
    }
    let spec: CacheSpec = "0.001".parse().unwrap();
    assert_eq!((spec.slots(8192), spec.slots(10)), (8, 1));
}

#[test]
fn can_be_shared_between_threads() {
    fn check<T: Send + Sync>() {}
    check::<WeightCache>();
}
