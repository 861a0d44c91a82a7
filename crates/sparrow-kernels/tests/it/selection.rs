//! Which neurons are active, on every tier: thresholds, bitmaps as sets of numbers, lists of ids, signs, means.

use crate::support::*;
use proptest::prelude::*;
use sparrow_kernels::*;
use std::collections::BTreeSet;

fn tiers() -> Vec<Compute> {
    Isa::ALL.into_iter().filter_map(|isa| Compute::with_isa(isa, Some(1)).ok()).collect()
}

/// Words of every density, full and empty ones among them.
fn word() -> impl Strategy<Value = u64> {
    prop_oneof![
        any::<u64>(),
        (any::<u64>(), any::<u64>(), any::<u64>()).prop_map(|(a, b, c)| a & b & c),
        Just(0),
        Just(u64::MAX),
        (0..64u32).prop_map(|i| 1 << i)
    ]
}

fn two_masks() -> impl Strategy<Value = (Vec<u64>, Vec<u64>)> {
    (0usize..9).prop_flat_map(|n| (proptest::collection::vec(word(), n), proptest::collection::vec(word(), n)))
}

fn signed(n: usize) -> impl Strategy<Value = Vec<f32>> {
    proptest::collection::vec(prop_oneof![-1.0f32..1.0, Just(0.0), Just(-0.0)], n)
}

fn set(mask: &[u64]) -> BTreeSet<u32> {
    (0..64 * mask.len() as u32).filter(|&i| mask[i as usize / 64] >> (i % 64) & 1 == 1).collect()
}

proptest! {
    #[test]
    fn ids_are_the_set_bits_whatever_the_list_held(masks in proptest::collection::vec(proptest::collection::vec(word(), 0..9), 1..4)) {
        for compute in tiers() {
            // One list for all, so that what a longer bitmap left behind would show.
            let mut ids = vec![9; 5];
            for mask in &masks {
                compute.mask_to_ids(mask, &mut ids);
                let want: Vec<u32> = set(mask).into_iter().collect();
                prop_assert_eq!(&ids, &want, "{}", compute.isa());
                prop_assert_eq!(count_ones(mask), want.len());
            }
        }
    }

    #[test]
    fn union_is_that_of_sets((old, new) in two_masks()) {
        let (old_set, new_set) = (set(&old), set(&new));
        let mut out = vec![7; old.len()];
        union_masks(&[old.clone(), new.clone()].concat(), old.len(), &mut out);
        prop_assert_eq!(set(&out), &old_set | &new_set);
    }

    /// Against counting products, one by one, whatever the length and with zeros of both signs.
    #[test]
    fn sign_agreement_counts_products(
        (k, x, w) in (1usize..200).prop_flat_map(|k| (Just(k), signed(2 * k), signed(5 * k)))
    ) {
        let words = mask_words(k);
        let negative = |v: f32| v.is_sign_negative();
        for compute in tiers() {
            let (mut x_signs, mut w_signs) = (vec![u64::MAX; 2 * words], vec![u64::MAX; 5 * words]);
            compute.pack_signs(&x, k, &mut x_signs);
            compute.pack_signs(&w, k, &mut w_signs);
            let mut bytes = vec![0; 5 * DType::F32.row_bytes(k)];
            encode(DType::F32, &w, &mut bytes);
            prop_assert_eq!(&compute.weight_signs(Matrix::new(DType::F32, 5, k, &bytes)), &w_signs);
            let mut out = vec![9.0; 10];
            compute.sign_agreement(&x_signs, &w_signs, k, &mut out);
            for (r, x) in x.chunks(k).enumerate() {
                for (i, w) in w.chunks(k).enumerate() {
                    let differing = x.iter().zip(w).filter(|(a, b)| negative(**a) != negative(**b)).count();
                    let want = (k as f32 - 2.0 * differing as f32) / k as f32;
                    prop_assert_eq!(out[r * 5 + i], want, "{}", compute.isa());
                }
            }
        }
    }

    /// The sums behind it, for every remainder of a block, against sums in the order of the values.
    #[test]
    fn mean_and_deviation_agree_with_a_loop(scores in proptest::collection::vec(-100f32..100.0, 1..200)) {
        let n = scores.len() as f64;
        let mean = scores.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
        let variance = scores.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / n;
        for compute in tiers() {
            let got = compute.mean_std(&scores);
            prop_assert!((f64::from(got.0) - mean).abs() <= 1e-5, "{} {got:?} {mean}", compute.isa());
            prop_assert!((f64::from(got.1) - variance.sqrt()).abs() <= 2e-5, "{} {got:?} {variance}", compute.isa());
        }
    }
}

#[test]
fn infinite_and_missing_scores_reach_the_mean() {
    for compute in tiers() {
        for n in [1, 9, 33, 100] {
            for (special, mean) in [(f32::NAN, f32::NAN), (f32::INFINITY, f32::INFINITY)] {
                let mut scores = vec![1.0; n];
                scores[n / 2] = special;
                assert_eq!(compute.mean_std(&scores).0.to_bits() & !(1 << 31), mean.to_bits(), "{}", compute.isa());
            }
        }
    }
}

#[test]
fn values_without_their_bit_are_zeroed_or_replaced() {
    let mut random = Random(15);
    for compute in tiers_to_test() {
        for n in EDGES.into_iter().filter(|&n| n > 0).chain([9000]) {
            let (m, words) = (3, mask_words(n));
            let mut values = random.values(m * n);
            values[n / 2] = f32::NAN;
            values[n - 1] = f32::INFINITY;
            let masks: Vec<u64> = (0..m * words).map(|_| random.next()).collect();
            let mut got = values.clone();
            compute.zero_unset(&mut got, n, &masks);
            let (others, mut replaced) = (random.values(n), values.clone());
            compute.replace_unset(&mut replaced, &others, &masks);
            for (i, value) in values.iter().enumerate() {
                let set = masks[i / n * words + i % n / 64] >> (i % n % 64) & 1 == 1;
                for (got, unset) in [(got[i], 0.0), (replaced[i], others[i % n])] {
                    let want = if set { *value } else { unset };
                    assert_eq!(got.to_bits(), want.to_bits(), "{i} of {n}, {}", describe(&compute));
                }
            }
        }
    }
}

#[test]
fn mean_and_deviation() {
    let mut random = Random(10);
    for compute in tiers_to_test() {
        assert_eq!(compute.mean_std(&[]), (0.0, 0.0));
        assert_eq!(compute.mean_std(&[3.0; 77]), (3.0, 0.0));
        for n in EDGES.into_iter().skip(1) {
            let x: Vec<f32> = random.values(n).iter().map(|v| v + 100.0).collect();
            let mean = x.iter().map(|&v| f64::from(v)).sum::<f64>() / n as f64;
            let variance = x.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / n as f64;
            let got = compute.mean_std(&x);
            assert_close(got.0, mean, 100.0 * 2.0 * U, &|| "mean".into());
            assert_close(got.1, variance.sqrt(), 1e-5, &|| "deviation".into());
        }
    }
}

proptest! {
    #[test]
    fn masks_agree_with_a_list_of_booleans(
        scores in proptest::collection::vec(
            prop_oneof![8 => -2.0f32..2.0, 1 => Just(0.0f32), 1 => Just(-0.0f32), 1 => Just(f32::NAN), 1 => Just(f32::INFINITY), 1 => Just(0.5f32)],
            0..300,
        ),
        threshold in prop_oneof![Just(0.0f32), Just(0.5f32), -1.0f32..1.0],
        magnitude: bool,
    ) {
        for compute in tiers_to_test() {
            let active: Vec<bool> = scores
                .iter()
                .map(|&v| (if magnitude { v.abs() } else { v }) > threshold)
                .collect();
            let mut mask = vec![u64::MAX; mask_words(scores.len())];
            compute.mask_above(&scores, threshold, magnitude, &mut mask);
            check_mask(&compute, &active, &mask);
            let nonzero: Vec<bool> = scores.iter().map(|&v| v != 0.0).collect();
            let second = mask_of(&nonzero);
            check_mask(&compute, &nonzero, &second);
            let both: Vec<bool> = active.iter().zip(&nonzero).map(|(a, b)| a | b).collect();
            let mut union = vec![u64::MAX; mask.len()];
            union_masks(&[mask.clone(), second].concat(), mask.len(), &mut union);
            check_mask(&compute, &both, &union);
        }
    }
}

fn mask_of(active: &[bool]) -> Vec<u64> {
    active.chunks(64).map(|bits| bits.iter().rev().fold(0, |word, &bit| word << 1 | u64::from(bit))).collect()
}

fn check_mask(compute: &Compute, want: &[bool], mask: &[u64]) {
    let bits: Vec<bool> = (0..mask.len() * 64).map(|i| mask[i / 64] >> (i % 64) & 1 == 1).collect();
    assert_eq!(&bits[..want.len()], want, "{}", describe(compute));
    assert!(!bits[want.len()..].contains(&true), "bits past the end");
    assert_eq!(count_ones(mask), want.iter().filter(|&&b| b).count());
    let mut ids = vec![7; 3];
    compute.mask_to_ids(mask, &mut ids);
    let expected: Vec<u32> = (0..want.len() as u32).filter(|&i| want[i as usize]).collect();
    assert_eq!(ids, expected);
}
