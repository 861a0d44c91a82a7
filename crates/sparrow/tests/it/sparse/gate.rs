//! The exact gate: nothing is lost, and a neuron counts only for the rows that selected it.

use std::sync::Arc;

use sparrow::internals::backend::Threshold;
use sparrow::{DType, Model, Selector};
use sparrow_testing::*;
use sparrow_tools::eval::evaluate;

/// Between two ways through the same f32 kernels.
const SAME: f64 = 2e-5;

const WINDOW: usize = 128;

#[test]
fn gate_is_lossless() {
    let ids = sample_ids();
    for cpu in [cpu(), exact()] {
        let (model, selector) = prepare(demo(), parse("gate"));
        let mut dense = session(&cpu, &model, Selector::dense(), 1, None);
        let mut sparse = session(&cpu, &model, selector, 1, None);
        for prompt in [&ids[..4], &ids[100..120], &ids[500..501]] {
            dense.truncate(0, 0).unwrap();
            sparse.truncate(0, 0).unwrap();
            sparse.reset_stats();
            assert_eq!(greedy(&mut sparse, 0, prompt, 64), greedy(&mut dense, 0, prompt, 64), "prompt {prompt:?}");
            let active = sparse.stats().active_fraction();
            assert!(active <= 0.2, "{active} active while generating");
        }
        let evaluation = evaluate(&mut dense, &mut sparse, &ids, WINDOW, &mut (), |_| ()).unwrap();
        assert!(evaluation.kl_mean < 1e-6 && evaluation.kl_p99 < 1e-6, "{evaluation:?}");
        assert_eq!(evaluation.top1_agreement, 1.0);
        assert!(evaluation.active_fraction <= 0.15, "{} active on sample.txt", evaluation.active_fraction);
    }
}

/// Neurons below a threshold, and those whose up is negative, are zero: leaving out what the gate closes changes nothing.
#[test]
fn gate_is_lossless_on_models_that_were_trained_sparse() {
    for (name, most) in [("prosparse", 0.6), ("bamboo", 0.6)] {
        let (model, selector) = prepare(load(&goldens_dir().join(name)), parse("gate"));
        let mut dense = session(&exact(), &model, Selector::dense(), 1, Some(DType::F32));
        let mut sparse = session(&exact(), &model, selector, 1, Some(DType::F32));
        for id in 3..30 {
            let p = dense.decode(&[(0, id)]).unwrap();
            let q = sparse.decode(&[(0, id)]).unwrap();
            let divergence = kl_divergence(p, q);
            assert!(divergence < 1e-8, "{name}: {divergence:e}");
        }
        let active = sparse.stats().active_fraction();
        assert!(0.2 < active && active < most, "{name}: {active} active");
    }
}

/// Prompts compute every neuron, so only decoding token by token shows what gathering the active ones costs: rounding,
/// of sums in another order. A bf16 cache turns some of it into flips of its last bit, so single tokens are held to the
/// bound with an f32 cache, and the mean with either.
#[test]
fn gate_is_lossless_where_neurons_are_gathered() {
    let ids = sample_ids();
    let (model, _) = prepare(demo(), parse("gate"));
    for kv_dtype in [DType::F32, DType::BF16] {
        let gate = Selector::gate(vec![Threshold::Fixed(0.0); model.spec.num_layers]);
        let mut dense = session(&cpu(), &model, Selector::dense(), 1, Some(kv_dtype));
        let mut sparse = session(&cpu(), &model, gate, 1, Some(kv_dtype));
        let (mut divergences, mut differs) = (Vec::new(), false);
        for window in ids.chunks(WINDOW) {
            dense.truncate(0, 0).unwrap();
            sparse.truncate(0, 0).unwrap();
            for &id in window {
                let p = dense.decode(&[(0, id)]).unwrap();
                let q = sparse.decode(&[(0, id)]).unwrap();
                differs |= p != q;
                divergences.push(kl_divergence(p, q));
            }
        }
        let mean = divergences.iter().sum::<f64>() / divergences.len() as f64;
        let max = divergences.iter().copied().fold(0.0, f64::max);
        println!("{kv_dtype} cache: KL of {} decoded tokens: mean {mean:.1e}, max {max:.1e}", divergences.len());
        assert!(differs, "the dense path was compared with itself");
        assert!(mean < 1e-6, "{kv_dtype} cache: mean KL {mean}");
        assert!(max < 1e-6 || kv_dtype == DType::BF16, "{kv_dtype} cache: largest KL {max}");
        assert!(sparse.stats().active_fraction() <= 0.15);
    }
}

/// Logits of eight texts after each token, decoded side by side in batches of `batch`.
fn decoded_in_batches(model: &Arc<Model>, texts: &[Vec<u32>], batch: usize, rule: Threshold) -> Vec<Vec<Vec<f32>>> {
    let vocab = model.spec.vocab_size;
    let mut out = Vec::new();
    for texts in texts.chunks(batch) {
        let selector = Selector::gate(vec![rule; model.spec.num_layers]);
        let mut session = session(&exact(), model, selector, batch, Some(DType::F32));
        let mut logits = vec![Vec::new(); texts.len()];
        for position in 0..texts[0].len() {
            let tokens: Vec<_> = texts.iter().enumerate().map(|(s, text)| (s, text[position])).collect();
            let step = session.decode(&tokens).unwrap();
            logits.iter_mut().zip(step.chunks_exact(vocab)).for_each(|(l, row)| l.push(row.to_vec()));
        }
        out.extend(logits);
    }
    out
}

#[test]
fn a_neuron_counts_only_for_the_rows_that_selected_it() {
    const LEN: usize = 20;
    // Far fewer than are active, so that counting another row's neurons too would show.
    let rule = Threshold::TopK(25);
    let (model, _) = prepare(demo(), parse("gate"));
    let ids = sample_ids();
    let texts: Vec<Vec<u32>> = ids.chunks_exact(LEN).take(8).map(<[u32]>::to_vec).collect();
    let alone = decoded_in_batches(&model, &texts, 1, rule);

    let prefill = |calls: &[usize], selector: Selector| {
        let mut session = session(&exact(), &model, selector, 8, Some(DType::F32));
        (0..8).map(|s| prefill_in(&mut session, s, &texts[s], calls)).collect::<Vec<_>>()
    };
    let gate = || Selector::gate(vec![rule; model.spec.num_layers]);
    for (what, found) in [
        ("batches of 3", decoded_in_batches(&model, &texts, 3, rule)),
        ("a batch of 8", decoded_in_batches(&model, &texts, 8, rule)),
        ("prefill as a whole", prefill(&[LEN], gate())),
        ("prefill by 7", prefill(&calls_of(7, LEN), gate())),
    ] {
        // A score within rounding of the threshold may fall on either side: that can happen to one text, not to two.
        let different = (0..8).filter(|&s| worst_difference(&found[s], &alone[s]) > SAME).count();
        assert!(different <= 1, "{what}: {different} of 8 texts differ from each alone");
    }
    // The comparison can tell: the dense model is another function.
    let dense = prefill(&[LEN], Selector::dense());
    assert!((0..8).all(|s| worst_difference(&dense[s], &alone[s]) > 100.0 * SAME));
}
