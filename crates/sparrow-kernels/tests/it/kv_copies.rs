//! Sparse caches that are copied in part or grow: they hold, show and go on to hold what a clone cut to length, or a
//! cache that was large from the start, does.

use crate::sparse_kv::{KV_HEADS, TYPES, fill, read, tokens};
use crate::support::*;
use proptest::prelude::*;
use sparrow_kernels::*;

/// Both hold the same, and count the same.
#[track_caller]
fn assert_same(a: &SparseKv, b: &SparseKv, compute: &Compute, what: &str) {
    assert_eq!((a.len(), a.packed()), (b.len(), b.packed()), "{what}: tokens, and packed ones");
    for head in 0..KV_HEADS {
        assert!(read(a, compute, head, 0..a.len()) == read(b, compute, head, 0..b.len()), "{what}: head {head}");
    }
    if a.is_empty() {
        return;
    }
    let d = a.shape().head_dim;
    let shape = AttentionShape { heads: 2 * KV_HEADS, kv_heads: KV_HEADS, head_dim: d, scale: 0.3, soft_cap: None };
    let q = Random(9).values(shape.heads * d);
    let [seen_of_a, seen_of_b] = [a, b].map(|cache| {
        let mut out = vec![f32::NAN; q.len()];
        compute.attention(&shape, &q, 1, &|_| cache.view(0, cache.len()), &mut out);
        out.into_iter().map(f32::to_bits).collect::<Vec<u32>>()
    });
    assert_eq!(seen_of_a, seen_of_b, "{what}: attention");
}

/// Both go on alike: more tokens, then back.
fn assert_goes_on(a: &mut SparseKv, b: &mut SparseKv, compute: &Compute, more: usize, back: usize) {
    let d = a.shape().head_dim;
    let rows = tokens(more, d, &mut Random(7));
    for cache in [&mut *a, b] {
        fill(cache, compute, &rows, 33);
    }
    assert_same(a, b, compute, "with more tokens");
    for cache in [&mut *a, b] {
        cache.truncate(compute, back);
    }
    assert_same(a, b, compute, "and back");
}

#[derive(Clone, Copy, Debug)]
struct Case {
    of: SparseKvShape,
    /// Tokens stored, and tokens of a step.
    len: usize,
    step: usize,
}

fn cases() -> impl Strategy<Value = Case> {
    let sparsity = prop_oneof![Just(0.0f32), Just(0.3), Just(0.5), Just(1.0)];
    let sizes =
        (prop_oneof![Just(0usize), 1usize..80], prop_oneof![Just(0usize), 1usize..150], 0usize..500, 1usize..400);
    (0..TYPES.len(), 1usize..24, sparsity.clone(), sparsity, sizes).prop_map(
        |(dtype, head_dim, key_sparsity, value_sparsity, (sinks, tail, len, step))| {
            let (dtype, kv_heads) = (TYPES[dtype], KV_HEADS);
            let of =
                SparseKvShape { dtype, kv_heads, head_dim, capacity: len, key_sparsity, value_sparsity, sinks, tail };
            Case { of, len, step }
        },
    )
}

fn filled(case: &Case, spare: usize, compute: &Compute) -> SparseKv {
    let mut cache = SparseKv::new(SparseKvShape { capacity: case.len + spare, ..case.of });
    fill(&mut cache, compute, &tokens(case.len, case.of.head_dim, &mut Random(3)), case.step);
    cache
}

fn best() -> Compute {
    Compute::new(Some(2))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Into a cache that was empty or held something longer or shorter, with room for just the tokens or for more.
    #[test]
    fn a_copied_prefix_is_a_clone_cut_to_length(
        case in cases(), cut in 0usize..520, held in 0usize..300, room in 0usize..200, spare in 0usize..100
    ) {
        let compute = best();
        let from = filled(&case, spare, &compute);
        let mut want = from.clone();
        want.truncate(&compute, cut);
        let capacity = want.len() + room;
        let mut copy = SparseKv::new(SparseKvShape { capacity, ..case.of });
        fill(&mut copy, &compute, &tokens(held.min(capacity), case.of.head_dim, &mut Random(5)), case.step);
        copy.copy_prefix(&compute, &from, cut);
        prop_assert_eq!(copy.shape().capacity, capacity);
        assert_same(&copy, &want, &compute, "the copy");
        let more = room.min(case.len + spare - want.len());
        assert_goes_on(&mut copy, &mut want, &compute, more, cut / 2);
    }

    /// At once or in two steps, empty or not.
    #[test]
    fn a_cache_that_grew_is_one_that_was_large(
        case in cases(), between in 0usize..400, growth in 0usize..400, back in 0usize..600
    ) {
        let compute = best();
        let mut large = filled(&case, growth, &compute);
        let mut grown = filled(&case, 0, &compute);
        grown.reserve(case.len + between.min(growth));
        grown.reserve(case.len + growth);
        grown.reserve(case.len);
        prop_assert_eq!(grown.shape(), large.shape());
        prop_assert_eq!(grown.bytes(), large.bytes());
        assert_same(&grown, &large, &compute, "grown");
        assert_goes_on(&mut grown, &mut large, &compute, growth, back);
    }
}

/// A copy takes what is stored: into a cache with as much room as it needs, whatever the room of the other.
#[test]
fn a_prefix_that_does_not_fit_is_refused() {
    let of = SparseKvShape {
        dtype: DType::BF16,
        kv_heads: KV_HEADS,
        head_dim: 4,
        capacity: 100,
        key_sparsity: 0.5,
        value_sparsity: 0.5,
        sinks: 0,
        tail: 0,
    };
    let compute = best();
    let mut from = SparseKv::new(of);
    fill(&mut from, &compute, &tokens(100, 4, &mut Random(1)), 100);
    let panics = |shape: SparseKvShape, len: usize| {
        let copy = || SparseKv::new(shape).copy_prefix(&compute, &from, len);
        let payload = std::panic::catch_unwind(std::panic::AssertUnwindSafe(copy)).err()?;
        payload.downcast_ref::<String>().cloned()
    };
    assert_eq!(panics(SparseKvShape { capacity: 64, ..of }, 64), None);
    let message = panics(SparseKvShape { capacity: 64, ..of }, 65);
    assert_eq!(message.as_deref(), Some("copy_prefix: 65 tokens into a cache of 64"));
    let message = panics(SparseKvShape { tail: 1, ..of }, 65).unwrap();
    assert!(message.contains("copy_prefix: the shapes differ in more than the capacity"), "{message}");
}
