//! Quantised caches: what they cost in quality, and what they save.

mod common;

use common::*;
use sparrow::DType;
use sparrow::eval::evaluate;
use sparrow::sparsity::Selector;

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
