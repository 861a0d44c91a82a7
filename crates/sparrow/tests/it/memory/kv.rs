//! Quantised caches: what they cost in quality, and what they save; copied ones.

use sparrow::{DType, KvOptions, KvSparsity, Selector};
use sparrow_testing::*;
use sparrow_tools::eval::evaluate;

const WINDOW: usize = 128;

/// Prompts: every key and value of the demo model rounded to 8 bits of its head's largest.
#[test]
fn an_int8_cache_is_close_to_a_bf16_one() {
    let ids = sample_ids();
    let (model, _) = prepare(demo(), parse("dense"));
    let session = |kv| session(&cpu(), &model, Selector::dense(), 1, Some(kv));
    let mut bf16 = session(DType::BF16);
    let mut int8 = session(DType::I8);
    let evaluation = evaluate(&mut bf16, &mut int8, &ids, WINDOW, &mut (), |_| ()).unwrap();
    println!("int8 cache, read: {evaluation:?}");
    assert!(evaluation.kl_mean < 1e-3 && evaluation.kl_p99 < 1e-2, "{evaluation:?}");
    assert!(evaluation.kl_mean > 0.0, "the bf16 cache was compared with itself");
    assert!(evaluation.top1_agreement > 0.98, "{evaluation:?}");
}

/// Decoding reads the cache by other kernels than prompts do.
#[test]
fn an_int8_cache_is_close_when_decoding() {
    let ids = sample_ids();
    let (model, _) = prepare(demo(), parse("dense"));
    let session = |kv| session(&cpu(), &model, Selector::dense(), 1, Some(kv));
    let (mut exact, mut int8) = (session(DType::F32), session(DType::I8));
    let mut divergences = Vec::new();
    for &id in &ids[..WINDOW] {
        let p = exact.decode(&[(0, id)]).unwrap();
        let q = int8.decode(&[(0, id)]).unwrap();
        divergences.push(kl_divergence(p, q));
    }
    let mean = divergences.iter().sum::<f64>() / divergences.len() as f64;
    println!("int8 cache, decoded: KL {mean:.1e}");
    assert!(mean > 0.0 && mean < 1e-3, "mean KL {mean}");
}

#[test]
fn an_int8_cache_is_little_more_than_half_a_bf16_one() {
    let (model, _) = prepare(demo(), parse("dense"));
    let bytes = |kv| session(&cpu(), &model, Selector::dense(), 1, Some(kv)).kv_bytes();
    let d = model.spec.head_dim as f64;
    let ratio = bytes(DType::I8) as f64 / bytes(DType::BF16) as f64;
    assert!((ratio - (d + 4.0) / (2.0 * d)).abs() < 1e-9, "{ratio}");
}

#[test]
fn a_copied_sequence_goes_on_like_its_original() {
    let ids = sample_ids();
    let (model, _) = prepare(demo(), parse("dense"));
    for sparsity in [None, Some(KvSparsity { keys: 0.3, values: 0.5 })] {
        let kv = KvOptions { sparsity, ..KvOptions::default() };
        let mut session = session_with(&cpu(), &model, Selector::dense(), 2, kv);
        session.prefill(0, &ids[..200]).unwrap();
        session.prefill(1, &ids[300..307]).unwrap();
        session.copy_prefix(0, 1, 200).unwrap();
        assert_eq!((session.len(0), session.len(1)), (200, 200));
        for &id in &ids[200..203] {
            let logits = session.decode(&[(0, id), (1, id)]).unwrap();
            let (original, copy) = logits.split_at(model.spec.vocab_size);
            assert_eq!(copy, original, "{sparsity:?}");
        }
        // What one of them goes on with is nothing to the other.
        let expected = session.decode(&[(0, ids[203])]).unwrap().to_vec();
        session.truncate(0, 203).unwrap();
        session.decode(&[(1, ids[300])]).unwrap();
        assert_eq!(session.decode(&[(0, ids[203])]).unwrap(), expected, "{sparsity:?}");
    }
}
