//! Bitmaps as sets: lists of ids, unions and differences against sets of numbers, on every tier.

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
