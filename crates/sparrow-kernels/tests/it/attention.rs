//! Attention of every available tier against `f64`: all element types, group and head sizes around every vector and
//! tile edge, lengths around every block edge, windows, soft caps, caches at odd addresses; results must not depend on
//! the number of threads or on the other rows of a call.

use crate::support::*;
use sparrow_kernels::*;
use std::ops::Range;

/// Half the distance from 1 to the next bf16.
const U_BF16: f64 = 1.0 / 256.0;

/// Keys and values of some sequences.
struct Caches {
    dtype: DType,
    capacity: usize,
    sequences: Vec<[Sample; 2]>,
}

impl Caches {
    fn random(dtype: DType, shape: &AttentionShape, capacity: usize, sequences: usize, random: &mut Random) -> Self {
        let rows = shape.kv_heads * capacity;
        let stored = |_| [(); 2].map(|()| Sample::random(dtype, rows, shape.head_dim, random));
        Self { dtype, capacity, sequences: (0..sequences).map(stored).collect() }
    }

    fn view(&self, (sequence, seen): &(usize, Range<usize>)) -> KvView<'_> {
        let [keys, values] = self.sequences[*sequence].each_ref().map(|s| s.matrix().bytes());
        let rows = KvRows::Dense(DenseKv { dtype: self.dtype, keys, values, capacity: self.capacity });
        KvView { rows, start: seen.start, len: seen.end }
    }
}

/// The sequence of each row and the positions that it sees.
type Rows = [(usize, Range<usize>)];

fn run(compute: &Compute, shape: &AttentionShape, caches: &Caches, q: &[f32], rows: &Rows) -> Vec<f32> {
    let mut out = vec![f32::NAN; q.len()];
    compute.attention(shape, q, rows.len(), &|row| caches.view(&rows[row]), &mut out);
    out
}

/// Attention of one head of one row in `f64`.
struct Attended {
    want: Vec<f64>,
    /// Without the rounding of q and weights.
    tolerance: f64,
    /// The largest scale · Σ|q·k|.
    size: f64,
}

fn reference(shape: &AttentionShape, caches: &Caches, q: &[f32], head: usize, row: &(usize, Range<usize>)) -> Attended {
    let [keys, values] = &caches.sequences[row.0];
    let skip = head / (shape.heads / shape.kv_heads) * caches.capacity;
    let seen = row.1.start + skip..row.1.end + skip;
    let (mut size, mut largest) = (0.0f64, 0.0f64);
    let scores: Vec<f64> = seen
        .clone()
        .map(|p| {
            let (mut sum, mut sizes) = (0.0, 0.0);
            for (i, &q) in q.iter().enumerate() {
                let product = keys.at(p, i) * f64::from(q);
                sum += product;
                sizes += product.abs();
            }
            size = size.max(sizes * f64::from(shape.scale));
            let sum = sum * f64::from(shape.scale);
            shape.soft_cap.map_or(sum, |c| f64::from(c) * (sum / f64::from(c)).tanh())
        })
        .collect();
    let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let mut want = vec![0.0; q.len()];
    let mut total = 0.0;
    for (score, p) in scores.iter().zip(seen.clone()) {
        let weight = (score - max).exp();
        total += weight;
        for (i, want) in want.iter_mut().enumerate() {
            *want += weight * values.at(p, i);
            largest = largest.max(values.at(p, i).abs());
        }
    }
    want.iter_mut().for_each(|v| *v /= if total == 0.0 { 1.0 } else { total });
    let tolerance = ((q.len() + 16) as f64 * 2.0 * U * size + (seen.len() + 64) as f64 * 2.0 * U) * largest;
    Attended { want, tolerance, size: size * largest }
}

fn to_bf16(x: &[f32]) -> Vec<f32> {
    let mut bytes = vec![0; 2 * x.len()];
    encode(DType::BF16, x, &mut bytes);
    let mut rounded = vec![0.0; x.len()];
    decode(DType::BF16, &bytes, &mut rounded);
    rounded
}

/// Whether the row is multiplied in bf16: the tier has it, and more than 8 neighbours share the cache.
fn is_rounded(compute: &Compute, shape: &AttentionShape, caches: &Caches, rows: &Rows, row: usize) -> bool {
    let same = |r: &&(usize, Range<usize>)| r.0 == rows[row].0;
    let count = rows[row..].iter().take_while(same).count() + rows[..row].iter().rev().take_while(same).count();
    let fits = matches!(caches.dtype, DType::BF16 | DType::I8);
    compute.isa() >= Isa::Avx512Bf16 && fits && count > 8 && count * (shape.heads / shape.kv_heads) >= 16
}

/// Checks one call on every tier.
fn check(tiers: &[Compute], shape: &AttentionShape, caches: &Caches, rows: &Rows, random: &mut Random) {
    let (heads, d) = (shape.heads, shape.head_dim);
    let q = random.values(rows.len() * heads * d);
    let rounded = to_bf16(&q);
    let references = |q: &[f32]| -> Vec<Attended> {
        let one = |at: usize| reference(shape, caches, &q[at * d..(at + 1) * d], at % heads, &rows[at / heads]);
        (0..rows.len() * heads).map(one).collect()
    };
    let (exact, coarse) = (references(&q), references(&rounded));
    let mut before: Option<(Isa, Vec<f32>)> = None;
    for compute in tiers {
        let out = run(compute, shape, caches, &q, rows);
        for at in 0..rows.len() * heads {
            let is_rounded = is_rounded(compute, shape, caches, rows, at / heads);
            let reference = if is_rounded { &coarse[at] } else { &exact[at] };
            let tolerance = reference.tolerance + if is_rounded { U_BF16 } else { 0.0 };
            for i in 0..d {
                assert_close(out[at * d + i], reference.want[i], tolerance, &|| {
                    let row = &rows[at / heads];
                    format!("{} {shape:?} row {} {row:?} [{i}] {}", caches.dtype, at / heads, describe(compute))
                });
            }
        }
        match &before {
            Some((isa, same)) if *isa == compute.isa() => assert_eq!(&out, same, "threads matter to {isa}"),
            _ => before = Some((compute.isa(), out)),
        }
    }
}

fn shape(group: usize, kv_heads: usize, head_dim: usize, soft_cap: Option<f32>) -> AttentionShape {
    let scale = 1.5 / (head_dim as f32).sqrt();
    AttentionShape { heads: group * kv_heads, kv_heads, head_dim, scale, soft_cap }
}

/// Rows that take turns in two caches, so that each is alone in its own.
fn alone(seen: &[Range<usize>]) -> Vec<(usize, Range<usize>)> {
    seen.iter().enumerate().map(|(i, seen)| (i % 2, seen.clone())).collect()
}

#[test]
fn rows_alone() {
    let mut random = Random(1);
    let tiers = tiers_to_test();
    let seen = [0..1, 0..15, 7..7, 0..16, 0..17, 3..103, 0..128, 0..129, 255..300, 5..300, 299..300];
    for dtype in [DType::F32, DType::F16, DType::BF16, DType::I8] {
        for head_dim in [1, 8, 15, 16, 64, 80, 128, 256] {
            for (group, kv_heads) in [(1, 2), (2, 1), (3, 1), (4, 1), (5, 1), (8, 1)] {
                if head_dim > 80 && group > 4 {
                    continue;
                }
                let shape = shape(group, kv_heads, head_dim, None);
                let caches = Caches::random(dtype, &shape, 300, 2, &mut random);
                check(&tiers, &shape, &caches, &alone(&seen), &mut random);
            }
            let shape = shape(3, 1, head_dim, Some(1.3));
            let caches = Caches::random(dtype, &shape, 300, 2, &mut random);
            check(&tiers, &shape, &caches, &alone(&seen), &mut random);
        }
    }
    for dtype in DType::CACHES {
        let shape = shape(3, 2, 72, None);
        let caches = Caches::random(dtype, &shape, 300, 2, &mut random);
        check(&tiers, &shape, &caches, &alone(&seen), &mut random);
    }
}

#[test]
fn long_rows_alone() {
    let mut random = Random(2);
    let tiers = tiers_to_test();
    let seen = [0..1000, 0..256, 0..257, 600..5000, 0..5000, 0..12_000];
    for dtype in [DType::F32, DType::F16, DType::BF16, DType::I8] {
        for (group, head_dim, soft_cap) in [(3, 64, None), (4, 33, Some(2.0))] {
            let shape = shape(group, 1, head_dim, soft_cap);
            let caches = Caches::random(dtype, &shape, 12_000, 2, &mut random);
            check(&tiers, &shape, &caches, &alone(&seen), &mut random);
        }
    }
}

/// A causal prompt whose last row sees `len` positions, at most `window` of them.
fn prompt(sequence: usize, rows: usize, len: usize, window: usize) -> Vec<(usize, Range<usize>)> {
    let seen = |row: usize| {
        let end = len - rows + 1 + row;
        end.saturating_sub(window)..end
    };
    (0..rows).map(|row| (sequence, seen(row))).collect()
}

#[test]
fn rows_together() {
    let mut random = Random(3);
    let tiers = tiers_to_test();
    for dtype in [DType::F32, DType::F16, DType::BF16, DType::I8] {
        for (group, kv_heads, head_dim, soft_cap) in [
            (2, 2, 1, None),
            (3, 1, 8, None),
            (2, 2, 15, Some(2.0)),
            (8, 1, 16, None),
            (3, 1, 64, None),
            (1, 1, 80, Some(1.0)),
            (3, 1, 128, None),
            (5, 1, 100, None),
            (2, 1, 256, None),
            (1, 1, 300, None),
        ] {
            let shape = shape(group, kv_heads, head_dim, soft_cap);
            let caches = Caches::random(dtype, &shape, 420, 2, &mut random);
            // A causal prompt with a window that starts late, one from the start, and rows that see all or nothing.
            let mut rows = prompt(0, 50, 350, 37);
            rows[..20].iter_mut().for_each(|row| row.1.start = 0);
            rows.extend(prompt(1, 33, 33, usize::MAX));
            rows.extend((0..12).map(|i| (0, if i % 4 == 1 { 200..200 } else { i..420 - i })));
            check(&tiers, &shape, &caches, &rows, &mut random);
            for count in [2, 8, 9, 17] {
                check(&tiers, &shape, &caches, &prompt(1, count, 260, usize::MAX), &mut random);
            }
        }
    }
    for dtype in DType::CACHES {
        let shape = shape(3, 1, 72, None);
        let caches = Caches::random(dtype, &shape, 420, 1, &mut random);
        check(&tiers, &shape, &caches, &prompt(0, 20, 300, usize::MAX), &mut random);
    }
}

#[test]
fn a_long_prompt() {
    let mut random = Random(4);
    let tiers = tiers_to_test();
    for dtype in [DType::F16, DType::BF16, DType::I8] {
        let shape = shape(3, 1, 64, None);
        let caches = Caches::random(dtype, &shape, 1000, 1, &mut random);
        check(&tiers, &shape, &caches, &prompt(0, 290, 1000, usize::MAX), &mut random);
        check(&tiers, &shape, &caches, &prompt(0, 100, 900, 300), &mut random);
    }
}

#[test]
fn a_prompt_is_what_its_rows_are_one_by_one() {
    let mut random = Random(5);
    for compute in tiers_to_test() {
        for dtype in [DType::F32, DType::BF16, DType::I8] {
            let shape = shape(3, 2, 128, None);
            let caches = Caches::random(dtype, &shape, 300, 2, &mut random);
            let (rows, row) = (prompt(0, 40, 300, usize::MAX), shape.heads * shape.head_dim);
            let q = random.values(rows.len() * row);
            let together = run(&compute, &shape, &caches, &q, &rows);
            for (r, seen) in rows.iter().enumerate() {
                let one = run(&compute, &shape, &caches, &q[r * row..(r + 1) * row], std::slice::from_ref(seen));
                let d = shape.head_dim;
                for (head, one) in one.chunks_exact(d).enumerate() {
                    let at = r * row + head * d;
                    let attended = reference(&shape, &caches, &q[at..at + d], head, seen);
                    // Rounding q moves a score by at most u · Σ|q·k|, and scores move the result twice as far.
                    let is_rounded = is_rounded(&compute, &shape, &caches, &rows, r);
                    let rounding = if is_rounded { U_BF16 * (1.0 + 2.0 * attended.size) } else { 0.0 };
                    let tolerance = 2.0 * attended.tolerance + rounding;
                    for (&a, &b) in one.iter().zip(&together[at..]) {
                        assert_close(b, f64::from(a), tolerance, &|| {
                            format!("{dtype} {r} {head} {}", describe(&compute))
                        });
                    }
                }
            }
        }
    }
}

#[test]
fn a_row_does_not_depend_on_other_sequences() {
    let mut random = Random(6);
    for compute in tiers_to_test() {
        for dtype in [DType::BF16, DType::I8] {
            let shape = shape(3, 2, 64, None);
            let caches = Caches::random(dtype, &shape, 900, 3, &mut random);
            let mut rows = vec![(0, 0..900), (1, 4..7), (2, 0..300)];
            rows.extend(prompt(1, 30, 200, usize::MAX));
            rows.extend([(0, 0..17), (2, 0..513)]);
            let row = shape.heads * shape.head_dim;
            let q = random.values(rows.len() * row);
            let all = run(&compute, &shape, &caches, &q, &rows);
            for range in [0..1, 1..2, 2..3, 3..33, 33..34, 34..35] {
                let q = &q[range.start * row..range.end * row];
                let alone = run(&compute, &shape, &caches, q, &rows[range.clone()]);
                assert_eq!(alone, all[range.start * row..range.end * row], "{range:?} {}", describe(&compute));
            }
        }
    }
}

#[test]
fn nan_and_infinity_reach_the_rows_that_see_them() {
    let mut random = Random(7);
    for compute in tiers_to_test() {
        for dtype in DType::FLOATS {
            for (special, in_keys) in
                [(f32::NAN, true), (f32::INFINITY, true), (f32::NAN, false), (f32::INFINITY, false)]
            {
                let (capacity, at, shape) = (600, 290, shape(2, 1, 40, None));
                let mut stored = [(); 2].map(|()| random.values(capacity * shape.head_dim));
                stored[usize::from(!in_keys)][at * shape.head_dim + 3] = special;
                let sequence = stored.map(|values| Sample::new(dtype, capacity, shape.head_dim, &values));
                let caches = Caches { dtype, capacity, sequences: vec![sequence] };
                let check = |rows: &Rows, q: &[f32]| {
                    let out = run(&compute, &shape, &caches, q, rows);
                    let row = shape.heads * shape.head_dim;
                    for (out, (_, seen)) in out.chunks(row).zip(rows) {
                        let what = format!("{dtype} {special} {in_keys} {seen:?} {}", describe(&compute));
                        for (i, v) in out.iter().enumerate() {
                            if seen.contains(&at) && (in_keys || i % shape.head_dim == 3) {
                                assert!(!v.is_finite(), "{what}");
                            } else if in_keys || rows.len() == 1 {
                                assert!(v.is_finite(), "{what}");
                            }
                        }
                    }
                };
                let row = shape.heads * shape.head_dim;
                // Positive, so that the score of an infinity is one too.
                let q: Vec<f32> = random.values(30 * row).iter().map(|v| v.abs() + 0.1).collect();
                for seen in [0..290, 0..291, 100..600, 291..400] {
                    check(&[(0, seen)], &q[..row]);
                }
                check(&prompt(0, 30, 305, usize::MAX), &q);
            }
        }
    }
}

#[test]
#[should_panic(expected = "attention: positions 3..9 of 8")]
fn positions_beyond_the_capacity_are_refused() {
    let shape = shape(1, 1, 4, None);
    let bytes = [0; 8 * 4 * 2];
    let rows = KvRows::Dense(DenseKv { dtype: DType::BF16, keys: &bytes, values: &bytes, capacity: 8 });
    let view = |_| KvView { rows, start: 3, len: 9 };
    Compute::new(Some(1)).attention(&shape, &[0.0; 4], 1, &view, &mut [0.0; 4]);
}
