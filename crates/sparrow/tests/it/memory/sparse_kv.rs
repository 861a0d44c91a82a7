//! Models over a sparse cache: against a dense one where nothing is dropped, against f64 with the same entries zeroed, in batches,
//! and going back.

use std::sync::Arc;

use sparrow::internals::spec::ModelSpec;
use sparrow::internals::spec::RopeScaling;
use sparrow::{DType, Error, KvOptions, KvSparsity, Model, Selector, Session, SessionOptions};
use sparrow_testing::reference::{Pruning, logits_pruned};
use sparrow_testing::*;
use sparrow_tools::eval::evaluate;

const NOTHING: KvSparsity = KvSparsity { keys: 0.0, values: 0.0 };
const SOME: KvSparsity = KvSparsity { keys: 0.3, values: 0.5 };

fn sparse(dtype: DType, sparsity: KvSparsity, dense_tail: usize, sinks: usize) -> KvOptions {
    KvOptions { dtype: Some(dtype), sparsity: Some(sparsity), dense_tail, sinks }
}

fn dense(dtype: DType) -> KvOptions {
    KvOptions { dtype: Some(dtype), ..KvOptions::default() }
}

/// A session with room for the whole context.
fn long(model: &Arc<Model>, cpu: &Arc<sparrow::Cpu>, sequences: usize, kv: KvOptions) -> Session {
    let options = SessionOptions { sequences, capacity: model.spec.context_length(), kv };
    Session::new(model.clone(), cpu.clone(), Selector::dense(), options).unwrap()
}

fn model(spec: ModelSpec) -> Arc<Model> {
    Arc::new(random_model(&spec, DType::F32, 7))
}

#[test]
fn dropping_nothing_is_dense_over_2000_tokens() {
    let model = model(ModelSpec { max_position_embeddings: 2048, ..odd_spec() });
    let ids = Random::new(1).ids(model.spec.vocab_size, 2000);
    for cpu in tiers() {
        // Prompts read the same bytes in the same order, whatever the type.
        for dtype in [DType::F32, DType::BF16, DType::I8] {
            let (mut plain, mut packed) =
                (long(&model, cpu, 1, dense(dtype)), long(&model, cpu, 1, sparse(dtype, NOTHING, 64, 3)));
            let calls = [700, 64, 1000, 236];
            let expected = prefill_in(&mut plain, 0, &ids, &calls);
            let found = prefill_in(&mut packed, 0, &ids, &calls);
            let worst = worst_difference(&found, &expected);
            // Without tiles every row is decoded: spans are cut where storage changes, and sums rescaled elsewhere.
            let tolerance = if cpu.compute.isa() == sparrow_kernels::Isa::Scalar { 1e-4 } else { 0.0 };
            assert!(
                worst <= tolerance || (tolerance > 0.0 && dtype != DType::F32),
                "{dtype} {}: {worst:e}",
                cpu.compute.isa()
            );
        }
        // Tokens: the same sums, rescaled where blocks end instead of every 128 positions. Two layers of attention over up to
        // 2000 positions, each within (2000 + 64) · 2⁻²³ at worst and far less in practice.
        let (mut plain, mut packed) =
            (long(&model, cpu, 1, dense(DType::F32)), long(&model, cpu, 1, sparse(DType::F32, NOTHING, 64, 3)));
        for (i, &id) in ids.iter().enumerate() {
            let expected = plain.decode(&[(0, id)]).unwrap().to_vec();
            let worst = difference(packed.decode(&[(0, id)]).unwrap(), &expected);
            assert!(worst < 1e-4, "token {i} on {}: {worst:e}", cpu.compute.isa());
        }
    }
}

#[test]
fn what_is_dropped_counts_as_zero() {
    let plain = ModelSpec { max_position_embeddings: 400, ..odd_spec() };
    let windows = ModelSpec { windows: vec![Some(90), None], attention_soft_cap: Some(2.0), ..plain.clone() };
    for (spec, tail, sinks) in [(plain.clone(), 20, 0), (plain, 64, 5), (windows, 20, 3)] {
        let model = model(spec);
        let ids = Random::new(2).ids(model.spec.vocab_size, 300);
        let pruning = Pruning { sparsity: [0.3, 0.5], sinks, tail };
        for calls in [vec![1; 300], vec![130, 3, 67, 100]] {
            let expected = logits_pruned(&model, &ids, &calls, pruning);
            for cpu in tiers() {
                let mut session = long(&model, cpu, 1, sparse(DType::F32, SOME, tail, sinks));
                let found = prefill_in(&mut session, 0, &ids, &calls);
                let worst = found.iter().zip(&expected).map(|(f, e)| difference_f64(f, e)).fold(0.0, f64::max);
                assert!(
                    worst < 1e-4,
                    "tail {tail}, sinks {sinks}, {} on {}: {worst:e}",
                    calls.len(),
                    cpu.compute.isa()
                );
                assert!(worst > 0.0);
            }
            // The reference does see the difference that dropping makes.
            let mut session = long(&model, &exact(), 1, dense(DType::F32));
            let kept = prefill_in(&mut session, 0, &ids, &calls);
            let effect = kept.iter().zip(&expected).map(|(f, e)| difference_f64(f, e)).fold(0.0, f64::max);
            assert!(effect > 1e-2, "dropping changes logits by {effect:e} only");
        }
    }
}

#[test]
fn a_batch_of_different_lengths_is_its_sequences_one_by_one() {
    let model = model(ModelSpec { max_position_embeddings: 400, ..odd_spec() });
    let mut random = Random::new(3);
    let prompts: Vec<Vec<u32>> = [200, 37, 131].iter().map(|&n| random.ids(model.spec.vocab_size, n)).collect();
    let ids = random.ids(model.spec.vocab_size, 150);
    for dtype in [DType::BF16, DType::I8] {
        let kv = sparse(dtype, SOME, 16, 2);
        let mut batch = long(&model, &cpu(), 3, kv);
        let mut single: Vec<Session> = prompts.iter().map(|_| long(&model, &cpu(), 1, kv)).collect();
        for (s, prompt) in prompts.iter().enumerate() {
            let expected = single[s].prefill(0, prompt).unwrap().to_vec();
            assert_eq!(batch.prefill(s, prompt).unwrap(), expected);
        }
        for &id in &ids {
            let found = batch.decode(&[(0, id), (1, id), (2, id)]).unwrap().to_vec();
            for (s, found) in found.chunks_exact(model.spec.vocab_size).enumerate() {
                let worst = difference(found, single[s].decode(&[(0, id)]).unwrap());
                assert!(worst < 1e-5, "{dtype}, sequence {s}: {worst:e}");
            }
        }
    }
}

/// As in speculative decoding: some tokens are tried together and only the first of them kept.
#[test]
fn tokens_that_were_only_tried_leave_no_trace() {
    let model = model(ModelSpec { max_position_embeddings: 400, ..odd_spec() });
    let mut random = Random::new(4);
    let ids = random.ids(model.spec.vocab_size, 330);
    let kv = sparse(DType::BF16, SOME, 8, 1);
    let (mut tried, mut plain) = (long(&model, &cpu(), 1, kv), long(&model, &cpu(), 1, kv));
    tried.prefill(0, &ids[..100]).unwrap();
    plain.prefill(0, &ids[..100]).unwrap();
    for (i, &id) in ids[100..].iter().enumerate() {
        let wrong = random.ids(model.spec.vocab_size, 1 + i % 20);
        tried.prefill(0, &wrong).unwrap();
        tried.truncate(0, 100 + i).unwrap();
        let expected = plain.decode(&[(0, id)]).unwrap().to_vec();
        assert_eq!(tried.decode(&[(0, id)]).unwrap(), expected, "token {i}");
    }
}

#[test]
fn going_back_into_packed_tokens_keeps_them_pruned() {
    let model = model(ModelSpec { max_position_embeddings: 400, ..odd_spec() });
    let mut random = Random::new(5);
    let ids = random.ids(model.spec.vocab_size, 320);
    let others = [&ids[..2], &random.ids(model.spec.vocab_size, 318)].concat();
    for back in [250, 130, 129, 66, 65, 64, 40, 2] {
        // All of what is packed is dropped, so that nothing but the sinks is left of a sequence, whatever it was.
        let kv = sparse(DType::F32, KvSparsity { keys: 1.0, values: 1.0 }, 0, 2);
        let logits = |ids: &[u32]| {
            let mut session = long(&model, &cpu(), 1, kv);
            session.prefill(0, &ids[..319]).unwrap();
            session.decode(&[(0, ids[319])]).unwrap();
            session.truncate(0, back).unwrap();
            assert_eq!(session.len(0), back);
            decode_each(&mut session, 0, &[5; 70])
        };
        assert_eq!(logits(&ids), logits(&others), "back to {back}");
    }
}

#[test]
fn a_sequence_that_is_rotated_anew_is_packed_anew() {
    let head_dim = odd_spec().head_dim;
    let scaling = RopeScaling::LongRope {
        short_factor: vec![1.0; head_dim / 2],
        long_factor: vec![3.0; head_dim / 2],
        original_max_position_embeddings: 150,
    };
    let positions = rope(10_000.0, head_dim, scaling);
    let model = model(ModelSpec { max_position_embeddings: 300, positions, ..odd_spec() });
    let ids = Random::new(6).ids(model.spec.vocab_size, 250);
    let logits = |kv| decode_each(&mut long(&model, &cpu(), 1, kv), 0, &ids);
    let worst = worst_difference(&logits(sparse(DType::F32, NOTHING, 16, 0)), &logits(dense(DType::F32)));
    assert!(worst < 1e-4, "{worst:e}");
}

#[test]
fn a_cache_of_16k_tokens_is_smaller() {
    let spec = ModelSpec {
        max_position_embeddings: 16384,
        head_dim: 128,
        positions: rope(1e4, 128, RopeScaling::None),
        ..odd_spec()
    };
    let model = model(spec);
    let bytes = |kv| long(&model, &cpu(), 1, kv).kv_bytes() as f64;
    let ratio = |dtype| bytes(sparse(dtype, SOME, 64, 0)) / bytes(dense(dtype));
    assert!(ratio(DType::BF16) <= 0.70, "{}", ratio(DType::BF16));
    assert!(ratio(DType::I8) <= 0.76, "{}", ratio(DType::I8));
}

#[test]
fn quality_is_measured_with_packed_blocks() {
    let (model, _) = prepare(demo(), parse("dense"));
    let ids = sample_ids();
    let ids = &ids[..2 * 512];
    let evaluation = |kv| {
        let mut plain = session(&cpu(), &model, Selector::dense(), 1, None);
        let mut pruned = session_with(&cpu(), &model, Selector::dense(), 1, kv);
        evaluate(&mut plain, &mut pruned, ids, 512, &mut (), |_| ()).unwrap()
    };
    let all = evaluation(sparse(DType::BF16, KvSparsity { keys: 1.0, values: 1.0 }, 64, 0));
    assert!(all.kl_mean > 1e-3, "{all:?}");
    let some = evaluation(sparse(DType::BF16, SOME, 64, 0));
    println!("keys 30 %, values 50 %: {some:?}");
    assert!(some.kl_mean > 0.0 && some.kl_mean < all.kl_mean && some.kl_mean < 0.05, "{some:?}");
    let nothing = evaluation(sparse(DType::BF16, NOTHING, 64, 0));
    assert!(nothing.kl_mean < 1e-4, "{nothing:?}");
}

#[test]
fn a_real_model_over_its_whole_context() {
    let Some(dir) = shared_data("models/stories260k") else { return };
    let model = Arc::new(load(&dir));
    let context = model.spec.context_length();
    let ids = Random::new(8).ids(model.spec.vocab_size, context);
    let (mut plain, mut packed) =
        (long(&model, &cpu(), 1, dense(DType::F32)), long(&model, &cpu(), 1, sparse(DType::F32, NOTHING, 64, 4)));
    for (i, &id) in ids.iter().enumerate() {
        let expected = plain.decode(&[(0, id)]).unwrap().to_vec();
        let worst = difference(packed.decode(&[(0, id)]).unwrap(), &expected);
        assert!(worst < 1e-4, "token {i}: {worst:e}");
    }
}

#[test]
fn fractions_are_checked() {
    let model = model(odd_spec());
    let kv = sparse(DType::F32, KvSparsity { keys: 0.5, values: 1.5 }, 64, 0);
    let options = SessionOptions { sequences: 1, capacity: 10, kv };
    let error = Session::new(model, cpu(), Selector::dense(), options).unwrap_err();
    assert!(matches!(error, Error::Option { .. }));
    assert_eq!(error.to_string(), "kv-sparsity: fractions must be from 0 to 1, found k=0.5,v=1.5");
}
