//! Quantised caches: what they cost in quality, and what they save; copied ones.

use std::sync::Arc;

use sparrow::internals::spec::{Biases, ModelSpec, QkNorm};
use sparrow::internals::tensor::Tensor;
use sparrow::internals::weights::{Source, Weights};
use sparrow::{DType, KvOptions, KvSparsity, Result, Selector};
use sparrow_kernels::encode;
use sparrow_testing::reference::values;
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

/// Random weights whose keys are 64 times as large in some channels, those that rotate into each other alike, and whose queries are as
/// much smaller there: the same function.
struct Uneven {
    source: RandomSource,
    head_dim: usize,
}

impl Uneven {
    fn factor(&self, name: &str, row: usize) -> f32 {
        match (row % (self.head_dim / 2)).is_multiple_of(2) {
            true if name.contains("k_proj") => 64.0,
            true if name.contains("q_proj") => 1.0 / 64.0,
            _ => 1.0,
        }
    }
}

impl Source for Uneven {
    fn matrix(&mut self, name: &str, rows: usize, cols: usize) -> Result<Tensor> {
        let mut all: Vec<f32> = values(&self.source.matrix(name, rows, cols)?).iter().map(|&v| v as f32).collect();
        for (r, row) in all.chunks_exact_mut(cols).enumerate() {
            row.iter_mut().for_each(|v| *v *= self.factor(name, r));
        }
        Tensor::in_memory(DType::F32, rows, cols, |out| encode(DType::F32, &all, out))
    }

    fn vector(&mut self, name: &str, len: usize) -> Result<Vec<f32>> {
        let all = self.source.vector(name, len)?;
        Ok(all.iter().enumerate().map(|(i, v)| v * self.factor(name, i)).collect())
    }

    fn contains(&self, name: &str) -> bool {
        self.source.contains(name)
    }
}

/// Channels of a size of their own cost nothing: keys are divided by what weights say that they are.
#[test]
fn an_int8_cache_bears_large_channels() {
    let spec = ModelSpec {
        biases: Biases { qkv: true, ..odd_spec().biases },
        qk_norm: QkNorm::None,
        max_position_embeddings: 400,
        ..odd_spec()
    };
    let mut uneven = random_model(&spec, DType::F32, 3);
    let mut scaled = Uneven { source: RandomSource { dtype: DType::F32, seed: 3 }, head_dim: spec.head_dim };
    uneven.weights = Arc::new(Weights::load(&spec, &mut scaled).unwrap());
    let [even, uneven] = [random_model(&spec, DType::F32, 3), uneven].map(|model| prepare(model, parse("dense")).0);
    let tokens = Random::new(2).ids(spec.vocab_size, 120);
    let run =
        |model, kv| prefill_in(&mut session_with(&cpu(), model, Selector::dense(), 1, kv), 0, &tokens, &[100, 7, 13]);
    for sparsity in [None, Some(KvSparsity { keys: 0.3, values: 0.5 })] {
        let kv = |dtype| KvOptions { dtype: Some(dtype), sparsity, dense_tail: 20, sinks: 2 };
        let [exact, rounded] = [DType::F32, DType::I8].map(|dtype| run(&uneven, kv(dtype)));
        let off = worst_difference(&rounded, &run(&even, kv(DType::I8)));
        println!(
            "{sparsity:?}: int8 is {:.1e} off f32, and {off:.1e} off that of even channels",
            worst_difference(&rounded, &exact)
        );
        let rounding = worst_difference(&rounded, &exact);
        assert!(rounding > 1e-4, "nothing was rounded");
        match sparsity {
            None => assert!(off < 1e-5 && rounding < 0.1),
            // What is dropped goes by the keys themselves, but for those that are rounded to the other side of a threshold.
            Some(_) => assert!(rounding < 0.6 * off),
        }
    }
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
