//! Each selector against what it is defined to be, computed another way.

use std::collections::BTreeSet;
use std::sync::Arc;

use sparrow::internals::backend::{ActiveNeurons, Observer, Point, Predictor, Threshold};
use sparrow::internals::select::SkippedBlocks;
use sparrow::internals::tensor::Tensor;
use sparrow::{DType, Model, Selector};
use sparrow_testing::*;
use sparrow_tools::calibrate::closed_form;

/// Between two ways through the same f32 kernels.
const SAME: f64 = 2e-5;

const TOKENS: usize = 20;

/// A low-rank predictor of one layer's gate.
fn predictor(model: &Model, layer: usize) -> Predictor {
    let gate = model.weights.layers[layer].mlp.gate.as_ref().unwrap();
    closed_form(gate, &moments(&identity(model.spec.hidden_size)), 8).unwrap()
}

fn low_rank(model: &Model, look_ahead: bool, rule: Threshold) -> Selector {
    let layers = model.spec.num_layers;
    Selector::low_rank((0..layers).map(|l| predictor(model, l)).collect(), look_ahead, vec![rule; layers])
}

/// A model with a selector by its text, `lowrank` with predictors made here and `ahead` looking ahead with these.
fn ready(model: Model, text: &str) -> (Arc<Model>, Selector) {
    let (name, rule) = text.split_once(':').unwrap();
    match name {
        "lowrank" | "ahead" => {
            let (model, _) = prepare(model, parse("forced:active=1,overlap=1"));
            let selector = low_rank(&model, name == "ahead", rule.parse().unwrap());
            (model, selector)
        }
        _ => prepare(model, parse(text)),
    }
}

#[test]
fn keeping_everything_is_dense_bit_for_bit() {
    for dtype in [DType::F32, DType::BF16] {
        for text in [
            "gate:fixed=-1",
            "gate:quantile=0",
            "lowrank:fixed=-1",
            "ahead:quantile=0",
            "sign:fixed=-2",
            "input:fixed=-1",
            "input:quantile=0",
            "forced:active=1,overlap=0.5",
        ] {
            for calls in [vec![TOKENS], vec![3, 9, 1, 7]] {
                let (model, selector) = ready(random_model(&odd_spec(), dtype, 5), text);
                let ids = Random::new(3).ids(model.spec.vocab_size, TOKENS);
                let run = |selector| prefill_in(&mut session(&cpu(), &model, selector, 1, None), 0, &ids, &calls);
                let (dense, sparse) = (run(Selector::dense()), run(selector));
                assert!(sparse == dense, "{dtype}, {text}, {calls:?}: {:e} apart", worst_difference(&sparse, &dense));
            }
        }
    }
}

#[test]
fn a_batch_gives_each_sequence_what_it_has_alone() {
    for text in
        ["gate:quantile=0.6", "lowrank:quantile=0.7", "ahead:mean-std=0.4", "sign:quantile=0.5", "input:quantile=0.4"]
    {
        let (model, selector) = ready(random_model(&odd_spec(), DType::F32, 11), text);
        let vocab = model.spec.vocab_size;
        let ids: Vec<Vec<u32>> = (0..8).map(|s| Random::new(s).ids(vocab, 6)).collect();
        let mut batched = session(&exact(), &model, selector, 8, Some(DType::F32));
        let mut together: Vec<Vec<Vec<f32>>> = vec![Vec::new(); 8];
        #[allow(clippy::needless_range_loop)] // steps index several sequences
        for t in 0..6 {
            // 1, 3 or 8 rows: the first sequences run ahead, which must not matter.
            for group in [0..1, 1..4, 4..8] {
                let tokens: Vec<(usize, u32)> = group.clone().map(|s| (s, ids[s][t])).collect();
                let logits = batched.decode(&tokens).unwrap().to_vec();
                logits.chunks_exact(vocab).zip(group).for_each(|(l, s)| together[s].push(l.to_vec()));
            }
        }
        let everyone: Vec<(usize, u32)> = (0..8).map(|s| (s, 1)).collect();
        let last = batched.decode(&everyone).unwrap().to_vec();
        for (s, row) in last.chunks_exact(vocab).enumerate() {
            together[s].push(row.to_vec());
            batched.truncate(s, 0).unwrap();
            let alone = decode_each(&mut batched, s, &[&ids[s][..], &[1]].concat());
            let worst = worst_difference(&together[s], &alone);
            assert!(worst < SAME, "{text}, sequence {s}: {worst:e}");
        }
    }
}

/// A skipped block is one that adds zero.
#[test]
fn skipping_is_adding_nothing() {
    let zero =
        |tensor: &Tensor| Tensor::in_memory(tensor.dtype(), tensor.rows(), tensor.cols(), |out| out.fill(0)).unwrap();
    let blocks: SkippedBlocks = "attention=1,mlp=0".parse().unwrap();
    assert_eq!((blocks.attention.clone(), blocks.mlp.clone()), (BTreeSet::from([1]), BTreeSet::from([0])));
    let (model, selector) = prepare(random_model(&odd_spec(), DType::F32, 2), parse(&format!("skip:{blocks}")));
    let ids = Random::new(1).ids(model.spec.vocab_size, TOKENS);
    let mut edited = random_model(&odd_spec(), DType::F32, 2);
    let layers = &mut edited.weights_mut().layers;
    layers[1].o.weight = zero(reference::whole(&layers[1].o.weight)).into();
    layers[0].mlp.down.weight = zero(reference::whole(&layers[0].mlp.down.weight)).into();
    let mut skipping = session(&exact(), &model, selector, 1, Some(DType::F32));
    let found = prefill_in(&mut skipping, 0, &ids, &[12, 8]);
    let expected = prefill_in(
        &mut session(&exact(), &Arc::new(edited), Selector::dense(), 1, Some(DType::F32)),
        0,
        &ids,
        &[12, 8],
    );
    assert!(found == expected, "{:e}", worst_difference(&found, &expected));
    let layer = &model.weights.layers[0];
    let (attention, mlp) = (layer.attention_bytes() as f64, layer.mlp.bytes() as f64);
    let fractions = skipping.stats().active_fraction_per_layer();
    assert!((fractions[0] - attention / (attention + mlp)).abs() < 1e-9, "{fractions:?}");
    assert!((fractions[1] - mlp / (attention + mlp)).abs() < 1e-9, "{fractions:?}");

    let beyond = format!("skip:mlp={}", model.spec.num_layers);
    let load = loading(random_model(&odd_spec(), DType::F32, 2), parse(&beyond));
    let message = load.open(|_, _, _| ()).unwrap_err().to_string();
    assert!(message.contains("layer") && message.contains("0 to"), "{message}");
}

/// The rows of both kinds of input, and the masks made from them.
#[derive(Default)]
struct Inputs {
    attention: Vec<Vec<f32>>,
    mlp: Recorder,
}

impl Observer for Inputs {
    fn see(&mut self, layer: usize, point: Point, values: &[f32], m: usize) {
        if layer == 1 && point == Point::AttentionInput {
            self.attention.extend(values.chunks_exact(values.len() / m).map(<[f32]>::to_vec));
        }
    }

    fn mlp(&mut self, layer: usize, h: &[f32], m: usize, active: Option<ActiveNeurons>) {
        self.mlp.mlp(layer, h, m, active);
    }
}

#[test]
fn looking_ahead_reads_the_input_of_attention() {
    let (model, _) = ready(random_model(&odd_spec(), DType::F32, 8), "ahead:top-k=7");
    let ids = Random::new(1).ids(model.spec.vocab_size, TOKENS);
    let predictor = predictor(&model, 1);
    let (a, b) = (reference::values(&predictor.a), reference::values(&predictor.b));
    let (hidden, activation) = (model.spec.hidden_size, model.spec.activation);
    let mut seen = Inputs::default();
    // Few rows, which gather, and many, which are masked.
    for calls in [vec![TOKENS], calls_of(4, TOKENS)] {
        let selector = low_rank(&model, true, Threshold::TopK(7));
        prefill_observed(&mut session(&exact(), &model, selector, 1, None), 0, &ids, &calls, &mut seen);
    }
    for (row, z) in seen.attention.iter().enumerate() {
        let z: Vec<f64> = z.iter().map(|&v| f64::from(v)).collect();
        let low: Vec<f64> = a.chunks_exact(hidden).map(|a| reference::dot(a, &z)).collect();
        let score = |b: &[f64]| reference::activate(activation, reference::dot(b, &low)).abs();
        let mut scores: Vec<(f64, usize)> = b.chunks_exact(8).map(score).enumerate().map(|(i, s)| (s, i)).collect();
        scores.sort_by(|x, y| y.0.total_cmp(&x.0));
        if scores[6].0 - scores[7].0 < 1e-5 {
            continue;
        }
        for (rank, &(_, i)) in scores.iter().enumerate() {
            assert_eq!(seen.mlp.keeps(1, row, i), rank < 7, "row {row}, neuron {i}");
        }
    }
    assert_eq!(seen.attention.len(), 2 * TOKENS);
}

#[test]
fn signs_are_counted() {
    let (model, selector) = ready(random_model(&odd_spec(), DType::BF16, 8), "sign:fixed=0.05");
    let ids = Random::new(1).ids(model.spec.vocab_size, TOKENS);
    let gates: Vec<Vec<f64>> = model
        .weights
        .layers
        .iter()
        .map(|l| reference::values(reference::whole(&l.mlp.gate.as_ref().unwrap().weight)))
        .collect();
    let hidden = model.spec.hidden_size;
    let mut seen = Recorder::default();
    prefill_observed(&mut session(&exact(), &model, selector, 1, None), 0, &ids, &[TOKENS], &mut seen);
    for (layer, gate) in gates.iter().enumerate() {
        for (row, h) in seen.inputs[layer].iter().enumerate() {
            for (i, gate) in gate.chunks_exact(hidden).enumerate() {
                let same = gate.iter().zip(h).filter(|(w, h)| w.is_sign_negative() == h.is_sign_negative()).count();
                let score = (2.0 * same as f64 - hidden as f64) / hidden as f64;
                assert_eq!(seen.keeps(layer, row, i), score > 0.05, "layer {layer}, row {row}, neuron {i}: {score}");
            }
        }
    }
}
