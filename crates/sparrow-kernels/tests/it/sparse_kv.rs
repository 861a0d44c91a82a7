//! The sparse cache of every available tier: what it keeps against sorting, attention over it against attention over a
//! dense cache of the same numbers, and going back.

use crate::support::*;
use sparrow_kernels::*;
use std::ops::Range;

pub const TYPES: [DType; 4] = [DType::F32, DType::F16, DType::BF16, DType::I8];
pub const KV_HEADS: usize = 2;

fn shape(dtype: DType, head_dim: usize, capacity: usize, [key_sparsity, value_sparsity]: [f32; 2]) -> SparseKvShape {
    SparseKvShape { dtype, kv_heads: KV_HEADS, head_dim, capacity, key_sparsity, value_sparsity, sinks: 0, tail: 64 }
}

/// Keys and values `[tokens, kv_heads, head_dim]`.
pub fn tokens(count: usize, head_dim: usize, random: &mut Random) -> [Vec<f32>; 2] {
    [(); 2].map(|()| random.values(count * KV_HEADS * head_dim))
}

/// Appends tokens, packing before each step of `step` as a session does, and once more.
pub fn fill(cache: &mut SparseKv, compute: &Compute, [keys, values]: &[Vec<f32>; 2], step: usize) {
    let row = KV_HEADS * cache.shape().head_dim;
    for (keys, values) in keys.chunks(step * row).zip(values.chunks(step * row)) {
        cache.pack(compute, None);
        cache.store(compute, cache.len(), keys, values);
    }
    cache.pack(compute, None);
}

/// All rows of a head.
pub fn read(cache: &SparseKv, compute: &Compute, head: usize, positions: Range<usize>) -> [Vec<u8>; 2] {
    let bytes = positions.len() * cache.shape().dtype.row_bytes(cache.shape().head_dim);
    let [mut keys, mut values] = [(); 2].map(|()| vec![0; bytes]);
    cache.read(compute, head, positions, &mut keys, &mut values);
    [keys, values]
}

/// What should be kept of rows `[tokens, kv_heads, head_dim]` of one head, as a dense cache would store it: of the
/// blocks in `packed` all but the smallest, of equal ones the first.
fn expected(rows: &[f32], of: &SparseKvShape, head: usize, sparsity: f32, packed: Range<usize>) -> Vec<u8> {
    let (d, row_bytes) = (of.head_dim, of.dtype.row_bytes(of.head_dim));
    let mut bytes = Vec::new();
    for token in rows.chunks_exact(KV_HEADS * d) {
        let at = bytes.len();
        bytes.resize(at + row_bytes, 0);
        encode(of.dtype, &token[head * d..(head + 1) * d], &mut bytes[at..]);
    }
    let size = if of.dtype == DType::I8 { 1 } else { row_bytes / d };
    for block in packed.step_by(SparseKv::BLOCK) {
        let mut elements = Vec::new();
        for p in block..block + SparseKv::BLOCK {
            let mut row = vec![0.0; d];
            decode(of.dtype, &bytes[p * row_bytes..(p + 1) * row_bytes], &mut row);
            elements.extend(row.iter().enumerate().map(|(i, v)| (v.abs(), p, i)));
        }
        // Stable: of equal ones the last come first.
        elements.reverse();
        elements.sort_by(|a, b| a.0.total_cmp(&b.0));
        let dropped = (f64::from(sparsity) * elements.len() as f64) as usize;
        for &(_, p, i) in &elements[..dropped] {
            bytes[p * row_bytes + i * size..][..size].fill(0);
        }
    }
    bytes
}

#[test]
fn the_largest_are_kept() {
    let mut random = Random(1);
    for compute in tiers_to_test() {
        for dtype in TYPES {
            for (head_dim, sparsity) in [
                (1, [0.3, 0.5]),
                (7, [0.5, 0.3]),
                (12, [0.0, 1.0]),
                (31, [0.3, 0.5]),
                (32, [1.0, 0.0]),
                (33, [0.3, 0.5]),
                (64, [0.5, 0.9]),
                (80, [0.3, 0.5]),
                (128, [0.3, 0.5]),
            ] {
                for (sinks, tail, len, step) in [
                    (0, 0, 64, 1),
                    (0, 64, 127, 5),
                    (0, 64, 128, 128),
                    (3, 10, 215, 1),
                    (70, 1, 300, 90),
                    (0, 500, 300, 7),
                ] {
                    let of = SparseKvShape { sinks, tail, ..shape(dtype, head_dim, 310, sparsity) };
                    let mut cache = SparseKv::new(of);
                    let rows = tokens(len, head_dim, &mut random);
                    fill(&mut cache, &compute, &rows, step);
                    let packed = len.saturating_sub(sinks + tail) / SparseKv::BLOCK * SparseKv::BLOCK;
                    let what = || format!("{of:?} of {len} by {step}, {}", describe(&compute));
                    assert_eq!((cache.len(), cache.packed()), (len, packed), "{}", what());
                    for head in 0..KV_HEADS {
                        let found = read(&cache, &compute, head, 0..len);
                        for i in 0..2 {
                            let want = expected(&rows[i], &of, head, sparsity[i], sinks..sinks + packed);
                            assert!(found[i] == want, "{}, head {head}, {}", ["keys", "values"][i], what());
                        }
                        // Any part is part of the whole.
                        let part = len / 3..len - len / 5;
                        let bytes = dtype.row_bytes(head_dim);
                        let of_part = read(&cache, &compute, head, part.clone());
                        for i in 0..2 {
                            assert_eq!(of_part[i], found[i][part.start * bytes..part.end * bytes], "{}", what());
                        }
                    }
                }
            }
        }
    }
}

/// Keys that were divided by sizes of their channels are dropped as what they were.
#[test]
fn divided_keys_are_dropped_by_their_own_size() {
    let (mut random, head_dim, len) = (Random(12), 32, 150);
    let compute = Compute::new(Some(2));
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        let of = SparseKvShape { sinks: 3, tail: 10, ..shape(dtype, head_dim, len, [0.4, 0.5]) };
        // Powers of two, so that dividing rounds nothing.
        let sizes: Vec<f32> = (0..KV_HEADS * head_dim).map(|i| f32::from(1u8 << (i % 5))).collect();
        let [keys, values] = tokens(len, head_dim, &mut random);
        let divided: Vec<f32> = keys.iter().zip(sizes.iter().cycle()).map(|(key, size)| key / size).collect();
        let packed = |keys: &[f32], sizes| {
            let mut cache = SparseKv::new(of);
            cache.store(&compute, 0, keys, &values);
            assert!(cache.pack(&compute, sizes));
            [0, 1].map(|head| read(&cache, &compute, head, 0..len))
        };
        let (whole, divided, unweighted) =
            (packed(&keys, None), packed(&divided, Some(&sizes)), packed(&divided, None));
        for head in 0..KV_HEADS {
            let of_head = |rows: &[Vec<u8>; 2]| {
                let mut keys = vec![0.0; len * head_dim];
                decode(dtype, &rows[0], &mut keys);
                keys
            };
            let times = |keys: Vec<f32>| -> Vec<f32> {
                keys.iter().zip(sizes[head * head_dim..][..head_dim].iter().cycle()).map(|(k, size)| k * size).collect()
            };
            assert_eq!(times(of_head(&divided[head])), of_head(&whole[head]), "{dtype}");
            assert_eq!(divided[head][1], whole[head][1], "{dtype}: values");
            assert_ne!(times(of_head(&unweighted[head])), of_head(&whole[head]), "{dtype}: sizes change nothing");
        }
    }
}

#[test]
fn equal_magnitudes_and_nan() {
    for compute in tiers_to_test() {
        let (head_dim, len) = (8, 64);
        let of = SparseKvShape { tail: 0, ..shape(DType::F32, head_dim, 64, [0.5, 0.25]) };
        let mut cache = SparseKv::new(of);
        let mut rows = [(); 2].map(|()| vec![-2.0f32; len * KV_HEADS * head_dim]);
        rows[0][63 * KV_HEADS * head_dim] = f32::NAN;
        fill(&mut cache, &compute, &rows, 64);
        let [keys, values] = read(&cache, &compute, 0, 0..len).map(|bytes| {
            let mut values = vec![0.0; bytes.len() / 4];
            decode(DType::F32, &bytes, &mut values);
            values
        });
        let half = len * head_dim / 2;
        assert!(keys[..half - 1].iter().all(|&v| v == -2.0) && keys[half..63 * 8].iter().all(|&v| v == 0.0));
        assert!(keys[63 * head_dim].is_nan(), "NaN must not vanish");
        assert!(values[..len * head_dim * 3 / 4].iter().all(|&v| v == -2.0));
        assert!(values[len * head_dim * 3 / 4..].iter().all(|&v| v == 0.0));
    }
}

/// Attention over a sparse cache, and over a dense one of the same numbers.
fn attend(
    compute: &Compute,
    shape: &AttentionShape,
    caches: &[SparseKv],
    q: &[f32],
    rows: &[(usize, Range<usize>)],
) -> [Vec<f32>; 2] {
    let of = caches[0].shape();
    let row_bytes = of.dtype.row_bytes(of.head_dim);
    let dense: Vec<[Vec<u8>; 2]> = caches
        .iter()
        .map(|cache| {
            let mut all = [(); 2].map(|()| Vec::with_capacity(KV_HEADS * of.capacity * row_bytes));
            for head in 0..KV_HEADS {
                for (all, part) in all.iter_mut().zip(read(cache, compute, head, 0..cache.len())) {
                    all.extend(part);
                    all.resize((head + 1) * of.capacity * row_bytes, 0);
                }
            }
            all
        })
        .collect();
    let sparse = |row: usize| caches[rows[row].0].view(rows[row].1.start, rows[row].1.end);
    let dense = |row: usize| {
        let [keys, values] = &dense[rows[row].0];
        let of_row = KvRows::Dense(DenseKv { dtype: of.dtype, keys, values, capacity: of.capacity });
        KvView { rows: of_row, start: rows[row].1.start, len: rows[row].1.end }
    };
    let mut out = [(); 2].map(|()| vec![f32::NAN; q.len()]);
    compute.attention(shape, q, rows.len(), &sparse, &mut out[0]);
    compute.attention(shape, q, rows.len(), &dense, &mut out[1]);
    out
}

fn attention_shape(group: usize, head_dim: usize, soft_cap: Option<f32>) -> AttentionShape {
    let scale = 1.5 / (head_dim as f32).sqrt();
    AttentionShape { heads: group * KV_HEADS, kv_heads: KV_HEADS, head_dim, scale, soft_cap }
}

#[test]
fn a_token_sees_what_a_dense_cache_of_the_same_numbers_shows() {
    let mut random = Random(2);
    for compute in tiers_to_test() {
        for dtype in TYPES {
            for (group, head_dim, sparsity, soft_cap) in [
                (1, 1, [0.3, 0.5], None),
                (2, 8, [0.5, 0.5], None),
                (3, 33, [0.3, 0.5], Some(1.3)),
                (4, 64, [0.0, 0.0], None),
                (5, 80, [0.3, 0.5], None),
                (8, 31, [0.9, 1.0], None),
                (3, 128, [0.3, 0.5], None),
                (4, 128, [1.0, 0.5], None),
            ] {
                let of = SparseKvShape { sinks: 5, tail: 20, ..shape(dtype, head_dim, 700, sparsity) };
                let shape = attention_shape(group, head_dim, soft_cap);
                let mut caches = [(); 2].map(|()| SparseKv::new(of));
                for (cache, len) in caches.iter_mut().zip([700, 345]) {
                    fill(cache, &compute, &tokens(len, head_dim, &mut random), 50);
                }
                // Taking turns, so that each is alone in its cache.
                let seen = [0..700, 0..345, 0..5, 3..6, 60..700, 100..345, 69..133, 70..70, 68..70, 300..345, 664..700];
                let rows: Vec<_> = seen.into_iter().enumerate().map(|(i, seen)| (i % 2, seen)).collect();
                let q = random.values(rows.len() * shape.heads * head_dim);
                let [sparse, dense] = attend(&compute, &shape, &caches, &q, &rows);
                // Both are within the bound that `Compute::attention` states.
                let size = f64::from(shape.scale) * head_dim as f64;
                let tolerance = 2.0 * 2.0 * U * ((head_dim + 16) as f64 * size + 764.0);
                for (i, (&found, &want)) in sparse.iter().zip(&dense).enumerate() {
                    assert_close(found, f64::from(want), tolerance, &|| {
                        format!("{of:?} group {group} {:?} {}", rows[i / (shape.heads * head_dim)], describe(&compute))
                    });
                }
            }
        }
    }
}

#[test]
fn prompts_and_batches_see_the_same() {
    let mut random = Random(3);
    for compute in tiers_to_test() {
        for dtype in TYPES {
            for (group, head_dim) in [(3, 64), (1, 20), (2, 128)] {
                let of = SparseKvShape { sinks: 2, tail: 100, ..shape(dtype, head_dim, 600, [0.3, 0.5]) };
                let shape = attention_shape(group, head_dim, None);
                let mut caches = [(); 2].map(|()| SparseKv::new(of));
                for (cache, len) in caches.iter_mut().zip([600, 300]) {
                    fill(cache, &compute, &tokens(len, head_dim, &mut random), 77);
                }
                // A prompt, some with a window, then two tokens of a batch.
                let mut rows: Vec<_> = (0..40).map(|i| (0, i / 20 * 290..561 + i)).collect();
                rows.extend([(1, 0..300), (0, 0..600)]);
                let q = random.values(rows.len() * shape.heads * head_dim);
                let [sparse, dense] = attend(&compute, &shape, &caches, &q, &rows);
                let row = shape.heads * head_dim;
                if compute.isa() > Isa::Scalar {
                    // Tiles are packed from the same bytes.
                    assert!(sparse[..40 * row] == dense[..40 * row], "{dtype} {head_dim} {}", describe(&compute));
                }
                for (r, seen) in rows.iter().enumerate().skip(40) {
                    let alone =
                        attend(&compute, &shape, &caches, &q[r * row..(r + 1) * row], std::slice::from_ref(seen));
                    assert_eq!(alone[0], sparse[r * row..(r + 1) * row], "{dtype} {seen:?} {}", describe(&compute));
                }
            }
        }
    }
}

#[test]
fn going_back() {
    let mut random = Random(4);
    for compute in tiers_to_test() {
        for dtype in TYPES {
            let (head_dim, len, sinks, tail) = (20, 300, 6, 30);
            let of = SparseKvShape { sinks, tail, ..shape(dtype, head_dim, 400, [0.3, 0.5]) };
            let rows = tokens(len, head_dim, &mut random);
            for back in [300, 299, 270, 263, 262, 261, 230, 199, 198, 100, 70, 69, 7, 6, 5, 1, 0] {
                let mut cache = SparseKv::new(of);
                fill(&mut cache, &compute, &rows, 30);
                let before: Vec<_> = (0..KV_HEADS).map(|head| read(&cache, &compute, head, 0..back)).collect();
                cache.truncate(&compute, back);
                let what = || format!("{dtype} back to {back} {}", describe(&compute));
                assert_eq!(cache.len(), back, "{}", what());
                let packed = cache.packed();
                assert!(packed <= 256 && (packed == 0 || sinks + packed <= back), "{}", what());
                for (head, before) in before.iter().enumerate() {
                    assert_eq!(&read(&cache, &compute, head, 0..back), before, "{}", what());
                }
                // And on: what was packed is not packed again, the rest is pruned as it stands.
                let more = tokens(len - back, head_dim, &mut random);
                fill(&mut cache, &compute, &more, 45);
                assert_eq!((cache.len(), cache.packed()), (len, 256), "{}", what());
                let whole = |p: usize| p < sinks + packed;
                for (head, before) in before.iter().enumerate() {
                    let now = read(&cache, &compute, head, 0..back);
                    let bytes = dtype.row_bytes(head_dim);
                    for i in 0..2 {
                        for p in (0..back).filter(|&p| whole(p)) {
                            let at = p * bytes..(p + 1) * bytes;
                            assert_eq!(now[i][at.clone()], before[i][at], "{} {p}", what());
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn storing_over_what_was_not_confirmed() {
    let mut random = Random(5);
    let compute = &tiers_to_test()[0];
    let (head_dim, of) = (16, shape(DType::BF16, 16, 500, [0.3, 0.5]));
    let [first, tried, taken] = [150, 200, 3].map(|count| tokens(count, head_dim, &mut random));
    let (mut cache, mut other) = (SparseKv::new(of), SparseKv::new(of));
    for cache in [&mut cache, &mut other] {
        fill(cache, compute, &first, 50);
    }
    cache.store(compute, 150, &tried[0], &tried[1]);
    for cache in [&mut cache, &mut other] {
        cache.store(compute, 150, &taken[0], &taken[1]);
        cache.pack(compute, None);
    }
    for head in 0..KV_HEADS {
        assert_eq!(read(&cache, compute, head, 0..153), read(&other, compute, head, 0..153));
    }
}

#[test]
fn memory_is_what_the_sparsity_says() {
    let dense = (2 * KV_HEADS * 16384 * DType::BF16.row_bytes(128)) as f64;
    let ratio = |sparsity| SparseKv::new(shape(DType::BF16, 128, 16384, sparsity)).bytes() as f64 / dense;
    assert!(ratio([0.3, 0.5]) <= 0.7, "{}", ratio([0.3, 0.5]));
    assert!(ratio([0.0, 0.0]) < 1.08);
    assert!(ratio([1.0, 1.0]) < 0.08);
}

#[test]
#[should_panic(expected = "store: position 63 is packed")]
fn packed_positions_are_not_written() {
    let compute = &tiers_to_test()[0];
    let mut cache = SparseKv::new(shape(DType::BF16, 4, 200, [0.3, 0.5]));
    fill(&mut cache, compute, &tokens(130, 4, &mut Random(6)), 130);
    cache.store(compute, 63, &[0.0; 8], &[0.0; 8]);
}

#[test]
#[should_panic(expected = "attention: positions 0..7 of 6")]
fn positions_that_are_not_stored_are_refused() {
    let compute = &tiers_to_test()[0];
    let mut cache = SparseKv::new(shape(DType::BF16, 4, 200, [0.3, 0.5]));
    fill(&mut cache, compute, &tokens(6, 4, &mut Random(7)), 6);
    let shape = attention_shape(1, 4, None);
    compute.attention(&shape, &[0.0; 8], 1, &|_| cache.view(0, 7), &mut [0.0; 8]);
}

#[test]
#[should_panic(expected = "a sparse cache cannot hold int4")]
fn int4_is_refused() {
    SparseKv::new(shape(DType::I4G32, 32, 100, [0.3, 0.5]));
}

#[test]
fn memory_of_others_is_checked_and_seen_like_a_cache() {
    let mut random = Random(8);
    for compute in tiers_to_test() {
        for dtype in TYPES {
            let head_dim = 40;
            let of = SparseKvShape { tail: 20, ..shape(dtype, head_dim, 400, [0.3, 0.5]) };
            let mut cache = SparseKv::new(of);
            fill(&mut cache, &compute, &tokens(290, head_dim, &mut random), 50);
            let packed = cache.packed();
            let dense: Vec<[Vec<u8>; 2]> =
                (0..KV_HEADS).map(|head| read(&cache, &compute, head, packed..cache.len())).collect();
            let [keys, values] = [0, 1].map(|i| dense.iter().flat_map(|head| head[i].clone()).collect::<Vec<u8>>());
            let [key_blocks, value_blocks] = cache.blocks();
            let tail = cache.len() - packed;
            let parts = SparseKvParts {
                dtype,
                kv_heads: KV_HEADS,
                head_dim,
                blocks: packed / SparseKv::BLOCK,
                room_blocks: (of.capacity - of.tail) / SparseKv::BLOCK,
                key_blocks,
                value_blocks,
                tail,
                room: tail,
                keys: &keys,
                values: &values,
            };
            let rows = SparseRows::new(parts).unwrap();
            let shape = attention_shape(2, head_dim, None);
            let q = random.values(shape.heads * head_dim);
            let [mut found, mut expected] = [(); 2].map(|()| vec![f32::NAN; q.len()]);
            let seen = KvView { rows: KvRows::Sparse(rows), start: 0, len: cache.len() };
            compute.attention(&shape, &q, 1, &|_| seen, &mut found);
            compute.attention(&shape, &q, 1, &|_| cache.view(0, cache.len()), &mut expected);
            assert_eq!(found, expected, "{dtype} {}", describe(&compute));

            let mut changed = key_blocks.to_vec();
            changed[if dtype == DType::I8 { SparseKv::BLOCK * 4 } else { 0 }] ^= 1;
            let refused = |parts: SparseKvParts| SparseRows::new(parts).err();
            let block = SparseKvError::Block { part: "keys", head: 0, block: 0 };
            assert_eq!(refused(SparseKvParts { key_blocks: &changed, ..parts }), Some(block));
            for parts in [
                SparseKvParts { dtype: DType::I4G32, ..parts },
                SparseKvParts { blocks: parts.room_blocks, ..parts },
                SparseKvParts { tail: tail + 1, ..parts },
                SparseKvParts { room: tail + 1, ..parts },
                SparseKvParts { values: &values[1..], ..parts },
                SparseKvParts { value_blocks: &value_blocks[1..], ..parts },
                SparseKvParts { kv_heads: 0, ..parts },
                SparseKvParts { head_dim: 1 << 20, ..parts },
            ] {
                assert!(matches!(refused(parts), Some(SparseKvError::Part(_))));
            }
        }
    }
}
