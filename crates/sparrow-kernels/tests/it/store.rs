//! Storing keys and values: every tier writes the bytes that `encode` writes, at the right place.

use crate::support::*;
use sparrow_kernels::*;

/// Stores one row and compares it with `encode`.
fn check_row(compute: &Compute, dtype: DType, values: &[f32]) {
    let mut want = vec![0; dtype.row_bytes(values.len())];
    encode(dtype, values, &mut want);
    // At an odd address, between bytes that must stay.
    let mut bytes = [(); 2].map(|()| vec![0x5a; want.len() + 2]);
    let [keys, others] = &mut bytes;
    let end = 1 + want.len();
    let cache = KvMut { dtype, keys: &mut keys[1..end], values: &mut others[1..end], capacity: 1 };
    compute.store_kv(cache, 1, values.len(), 0, values, values);
    for bytes in &bytes {
        assert_eq!(bytes[1..end], want, "{dtype} {values:?} {}", describe(compute));
        assert_eq!([bytes[0], bytes[end]], [0x5a; 2], "{dtype} {}", describe(compute));
    }
}

#[test]
fn every_tier_rounds_like_encode() {
    // Every upper half, with lower halves around the ties of bf16 and of f16.
    let low = [0, 1, 0x0fff, 0x1000, 0x1001, 0x2fff, 0x3000, 0x3001, 0x7fff, 0x8000, 0x8001, 0xffff];
    let patterns: Vec<f32> =
        (0..=u16::MAX).flat_map(|high| low.map(|low| f32::from_bits(u32::from(high) << 16 | low))).collect();
    for compute in tiers_to_test() {
        for dtype in DType::FLOATS {
            patterns.chunks(4099).for_each(|values| check_row(&compute, dtype, values));
        }
    }
}

#[test]
fn every_tier_quantises_like_encode() {
    let mut random = Random(1);
    for compute in tiers_to_test() {
        for dtype in DType::CACHES {
            for n in [1, 2, 3, 7, 8, 15, 16, 17, 31, 32, 33, 64, 65, 128, 200] {
                check_row(&compute, dtype, &random.values(n));
                check_row(&compute, dtype, &vec![0.0; n]);
                // Halves of the step: ties.
                let ties: Vec<f32> = (0..n).map(|i| if i == 0 { 127.0 } else { i as f32 * 0.5 - 30.0 }).collect();
                check_row(&compute, dtype, &ties);
                for special in [f32::NAN, f32::INFINITY, 1e-42, f32::MAX] {
                    let mut values = random.values(n);
                    values[random.below(n)] = special;
                    check_row(&compute, dtype, &values);
                }
            }
        }
    }
}

#[test]
fn rows_go_to_their_positions() {
    let mut random = Random(2);
    for compute in tiers_to_test() {
        for dtype in DType::CACHES {
            for (rows, first, capacity, heads, d) in [(1, 0, 1, 1, 1), (3, 2, 9, 3, 20), (150, 7, 160, 2, 64)] {
                let inputs = [(); 2].map(|()| random.values(rows * heads * d));
                let row = dtype.row_bytes(d);
                let mut caches = [(); 2].map(|()| vec![0x5a; heads * capacity * row]);
                let [keys, values] = &mut caches;
                let cache = KvMut { dtype, keys, values, capacity };
                compute.store_kv(cache, heads, d, first, &inputs[0], &inputs[1]);
                for (input, cache) in inputs.iter().zip(&caches) {
                    for head in 0..heads {
                        for position in 0..capacity {
                            let stored = &cache[(head * capacity + position) * row..][..row];
                            let mut want = vec![0x5a; row];
                            if (first..first + rows).contains(&position) {
                                let from = &input[((position - first) * heads + head) * d..][..d];
                                encode(dtype, from, &mut want);
                            }
                            assert_eq!(stored, want, "{dtype} {head} {position} {}", describe(&compute));
                        }
                    }
                }
            }
        }
    }
}

#[test]
#[should_panic(expected = "store_kv: positions 7..9 of 8")]
fn positions_beyond_the_capacity_are_refused() {
    let [mut keys, mut values] = [[0; 8 * 4 * 2]; 2];
    let cache = KvMut { dtype: DType::BF16, keys: &mut keys, values: &mut values, capacity: 8 };
    Compute::new(Some(1)).store_kv(cache, 1, 4, 7, &[0.0; 8], &[0.0; 8]);
}
