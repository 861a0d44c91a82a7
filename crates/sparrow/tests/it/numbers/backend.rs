//! [`Reference`], the backend to read, under the library's one forward pass: against transformers, against the tests' own walk
//! through an architecture, and the CPU against it with every selector. So [`Backend`] asks for all that a session needs.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use safetensors::SafeTensors;
use sparrow::internals::backend::{ActiveNeurons, GateNeurons, Observer, Point, Predictor, Scorer, Threshold};
use sparrow::internals::run::{After, LayerStream, Run};
use sparrow::internals::select::Neurons;
use sparrow::internals::spec::ModelSpec;
use sparrow::internals::spec::{
    Biases, BlockNorms, Fused, Norm, NormKind, Positions, QkNorm, Rope, RopeScaling, names,
};
use sparrow::internals::weights::{LayerWeights, Source};
use sparrow::session::{Logits, Segment};
use sparrow::{Backend, DType, KvOptions, KvSparsity, Model, Selector, Session, SessionOptions};
use sparrow_kernels::{Activation, BitmapParts};
use sparrow_testing::reference::{ALL, Pruning};
use sparrow_testing::reference_backend::Reference;
use sparrow_testing::*;

/// Of logits from those of transformers in f32, relative to the largest of a row.
const F32_TOLERANCE: f64 = 2e-4;
/// Of logits in f32 from those in f64: every value on the residual stream's way is rounded, four times a layer.
const ROUNDING: f64 = 2e-5;

const TOKENS: usize = 20;
const CALLS: [usize; 6] = [3, 9, 1, 5, 1, 1];

/// Three sequences with room for the whole context.
fn on<B: Backend>(backend: &Arc<B>, model: &Arc<Model>, selector: &Selector, kv: KvOptions) -> Session<B> {
    let options = SessionOptions { sequences: 3, capacity: model.spec.context_length(), kv };
    Session::new(model.clone(), backend.clone(), selector.clone(), options).unwrap()
}

fn dense_kv() -> KvOptions {
    KvOptions { dtype: Some(DType::F32), ..KvOptions::default() }
}

fn dense(model: &Arc<Model>) -> Session<Reference> {
    on(&Arc::new(Reference), model, &Selector::Dense, dense_kv())
}

/// Logits that are those in f64, said in f32: 1e-9 of a row's largest is left to f64's own rounding.
fn assert_exact(what: &str, found: &[Vec<f32>], expected: &[Vec<f64>]) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (position, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert_eq!(found.len(), expected.len(), "{what}");
        let largest = expected.iter().fold(0.0f64, |m, v| m.max(v.abs()));
        for (&f, e) in found.iter().zip(expected) {
            let bound = 2f64.powi(-24) * e.abs() + 1e-9 * largest;
            assert!((f64::from(f) - e).abs() <= bound, "{what}, position {position}: {f} for {e}");
        }
    }
}

/// A golden case: name, model, ids `[2][seq]`, logits `[2][seq][vocab]`, and the ids that follow the first sequence.
type Golden = (String, Arc<Model>, Vec<Vec<u32>>, Vec<Vec<Vec<f32>>>, Vec<u32>);

fn golden(dir: &Path) -> Golden {
    let bytes = std::fs::read(dir.join("golden.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let ids = |name: &str| -> Vec<u32> {
        let data = file.tensor(name).unwrap();
        data.data().as_chunks().0.iter().map(|&b| i64::from_le_bytes(b).try_into().unwrap()).collect()
    };
    let logits = file.tensor("logits").unwrap();
    let &[2, seq, vocab] = logits.shape() else { panic!("logits have shape {:?}", logits.shape()) };
    let values: Vec<f32> = logits.data().as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect();
    let rows: Vec<Vec<f32>> = values.chunks_exact(vocab).map(<[f32]>::to_vec).collect();
    let pairs = ids("input_ids").chunks_exact(seq).map(<[u32]>::to_vec).collect();
    let name = dir.file_name().unwrap().to_string_lossy().into_owned();
    (name, Arc::new(load(dir)), pairs, rows.chunks_exact(seq).map(<[Vec<f32>]>::to_vec).collect(), ids("greedy"))
}

#[test]
fn logits_and_greedy_ids_are_those_of_transformers() {
    let mut dirs: Vec<_> = std::fs::read_dir(goldens_dir()).unwrap().map(|e| e.unwrap().path()).collect();
    dirs.retain(|path| path.is_dir());
    assert_eq!(dirs.len(), 32, "golden cases");
    for (name, model, pairs, expected, continued) in dirs.iter().map(|dir| golden(dir)) {
        let mut session = dense(&model);
        let len = pairs[0].len();
        for (row, ids) in pairs.iter().enumerate() {
            let mut worst = 0.0f64;
            for size in [len, 7, 1] {
                session.truncate(row, 0).unwrap();
                let calls = calls_of(size, len);
                let found = match size {
                    1 => decode_each(&mut session, row, ids),
                    _ => prefill_in(&mut session, row, ids, &calls),
                };
                assert_exact(&name, &found, &reference::logits(&model, ids, &calls, ALL));
                // Frequencies that follow from a call's length are others in other calls.
                if size == len || !model.spec.ropes().any(Rope::is_dynamic) {
                    worst = worst.max(worst_difference(&found, &expected[row]));
                }
            }
            println!("{name}, row {row}: {worst:.1e} from transformers");
            assert!(worst < F32_TOLERANCE, "{name}, row {row}: {worst:.1e} off");
        }
        session.truncate(0, 0).unwrap();
        let fit = continued.len().min(session.capacity(0) + 1 - len);
        assert!(fit == continued.len() || name == "rope-dynamic", "{name}: {fit} ids fit");
        assert_eq!(greedy(&mut session, 0, &pairs[0], fit), continued[..fit], "{name}");
    }
}

/// How many [`spec`]s are tried.
const SPECS: u64 = 36;

/// An architecture that there need not be: every field is one of its values, by chance. Of so many each has been there.
fn spec(seed: u64) -> ModelSpec {
    let mut random = Random::new(seed);
    let mut below = |n: usize| (random.next_u64() % n as u64) as usize;
    let factors = |step: f64| (0..4).map(|i| 1.5 + step * f64::from(i)).collect();
    let scaling = match below(3) {
        0 => RopeScaling::None,
        1 => RopeScaling::Dynamic { factor: 6.0 },
        _ => RopeScaling::LongRope {
            short_factor: factors(0.1),
            long_factor: factors(1.0),
            original_max_position_embeddings: 12,
        },
    };
    let dynamic = matches!(scaling, RopeScaling::Dynamic { .. });
    let full = Rope { theta: 1e3, rotary_dim: 8, scaling, attention_factor: [1.0, 1.3][below(2)] };
    let windowed = Rope { theta: 50.0, scaling: RopeScaling::None, ..full.clone() };
    let windowed = (!dynamic && below(2) == 0).then_some(windowed);
    let learned = !dynamic && below(4) == 0;
    let gated = below(3) > 0;
    let norm = [NormKind::Rms { offset: 0.0 }, NormKind::Rms { offset: 1.0 }, NormKind::Layer];
    ModelSpec {
        names: names::POST_NORMS,
        max_position_embeddings: if dynamic { 10 } else { 64 },
        num_kv_heads: [1, 3, 6][below(3)],
        norm: Norm { kind: norm[below(3)], eps: 1e-5 },
        block_norms: [BlockNorms::Before, BlockNorms::BeforeAndAfter, BlockNorms::After][below(3)],
        qk_norm: [QkNorm::None, QkNorm::Head, QkNorm::Projection][below(3)],
        activation: Activation::ALL[below(7)],
        gated,
        biases: Biases { qkv: below(2) == 0, output: below(2) == 0, mlp: below(2) == 0 },
        fused: Fused { qkv: below(2) == 0, gate_up: gated && below(2) == 0 },
        positions: if learned { Positions::Learned { offset: 2 } } else { Positions::Rope { full, windowed } },
        attention_soft_cap: [None, Some(2.0)][below(2)],
        logits_soft_cap: [None, Some(3.0)][below(2)],
        windows: vec![[None, Some(5)][below(2)], [None, Some(1)][below(2)]],
        embedding_scale: [1.0, 2.5][below(2)],
        tied: below(2) == 0,
        ..odd_spec()
    }
}

fn ids(spec: &ModelSpec, seed: u64, len: usize) -> Vec<u32> {
    Random::new(seed).ids(spec.vocab_size, len)
}

#[test]
fn the_one_forward_pass_is_the_walk_of_the_tests() {
    for seed in 0..SPECS {
        let spec = spec(seed);
        let tokens = ids(&spec, 1, TOKENS);
        for (i, dtype) in DType::ALL.into_iter().filter(|dtype| dtype.is_writable()).enumerate() {
            let layout = ["as it is", "neuron-major", "input-major", "bitmap"][(seed as usize + i) % 4];
            let quantized = dtype.is_quantized().then_some(dtype);
            let stored = |format: &str| {
                let mut model = random_model(&spec, if dtype.is_quantized() { DType::F32 } else { dtype }, seed);
                match layout {
                    "neuron-major" => model.weights_mut().make_neuron_major(&cpu().compute, |_, _| ()).unwrap(),
                    "input-major" => model.weights_mut().make_input_major(&cpu().compute, |_, _| ()).unwrap(),
                    _ => {}
                }
                let load = loading(model, parse("dense")).dtype(quantized).format(format.parse().unwrap());
                load.open(|_, _, _| ()).unwrap().model
            };
            let (whole, model) = (stored("dense"), stored(if layout == "bitmap" { layout } else { "dense" }));
            let packed = is_bitmap(&model.weights.layers[0].q.weight);
            assert_eq!(packed, layout == "bitmap" && BitmapParts::supports(dtype), "{dtype}");
            let expected = reference::logits(&whole, &tokens, &CALLS, ALL);
            let found = prefill_in(&mut dense(&model), 0, &tokens, &CALLS);
            assert_exact(&format!("{seed}, {dtype}, {layout}"), &found, &expected);
        }
    }
}

/// Gated by a smooth activation, gated with exact zeros, which tie, and ungated.
fn sparse_specs() -> [ModelSpec; 3] {
    let relu = ModelSpec { activation: Activation::Relu, windows: vec![Some(7), None], ..odd_spec() };
    [odd_spec(), relu.clone(), ModelSpec { gated: false, biases: Biases { mlp: true, ..Biases::default() }, ..relu }]
}

const SELECTORS: &str = "gate:fixed=0.1 gate:fixed=0 gate:fixed=-1 gate:top-k=30 gate:quantile=0.3 gate:quantile=0.92 \
    gate:mean-std=0.2 gate:sparsity=0.7 weighted:fixed=0.05 weighted:top-k=30 weighted:quantile=0.6 lowrank:top-k=30 lowrank:mean-std=0.1 odds:fixed=0.5 ahead:fixed=0.1 \
    ahead:quantile=0.85 sign:quantile=0.5 sign:fixed=0.05 sign:top-k=20 input:quantile=0.4 input:fixed=0.3 \
    input:mean-std=0 skip:attention=1,mlp=0 forced:active=0.3,overlap=0.5";

/// A model with a selector by its text: `weighted` is `gate` with random weights and means of neurons, `lowrank` with random predictors, `odds` with those that give log-odds, `ahead` with those
/// that look ahead.
fn ready(spec: &ModelSpec, text: &str) -> (Arc<Model>, Selector) {
    let model = random_model(spec, DType::F32, 5);
    let (name, rule) = text.split_once(':').unwrap();
    if name == "weighted" {
        let (model, _) = prepare(model, parse("gate:fixed=0"));
        let of_layer = |(l, layer): (usize, &LayerWeights)| {
            let mut random = Random::new(l as u64);
            let mut values = |from: f64, to: f64| -> Vec<f32> {
                (0..spec.intermediate_size).map(|_| (from + (to - from) * random.uniform()) as f32).collect()
            };
            GateNeurons::new(&exact(), &layer.mlp, [values(0.5, 2.0), values(-0.2, 0.2)])
        };
        let scorer = Scorer::Gate(Some(model.weights.layers.iter().enumerate().map(of_layer).collect()));
        let rules = vec![rule.parse().unwrap(); spec.num_layers];
        return (model, Selector::Neurons(Neurons::above(scorer, rules, false)));
    }
    if !["lowrank", "odds", "ahead"].contains(&name) {
        return prepare(model, parse(text));
    }
    let (hidden, neurons, rank) = (spec.hidden_size, spec.intermediate_size, 9);
    let predictor = |layer: usize| {
        let mut random = RandomSource { dtype: DType::F32, seed: layer as u64 };
        let a = random.matrix("a", rank, hidden).unwrap();
        let b = random.matrix("b", neurons, rank).unwrap();
        Predictor { a, b, bias: random.vector("bias", neurons).unwrap(), logits: name == "odds" }
    };
    let predictors: Vec<Predictor> = (0..spec.num_layers).map(predictor).collect();
    let rules: Vec<Threshold> = vec![rule.parse().unwrap(); spec.num_layers];
    let neurons = Neurons::above(Scorer::LowRank(predictors.into()), rules, name == "ahead");
    let (model, _) = prepare(model, parse("forced:active=1,overlap=1"));
    (model, Selector::Neurons(neurons))
}

/// On how many neurons two runs differ in the first row where they do: what comes after follows from it.
fn parted(a: &Recorder, b: &Recorder) -> u32 {
    let words = |r: &Recorder, row: usize| -> Vec<u64> {
        r.masks.iter().flat_map(|layer| layer[row].clone().unwrap_or_default()).collect()
    };
    let of_row = |row| words(a, row).iter().zip(words(b, row)).map(|(a, b)| (a ^ b).count_ones()).sum();
    (0..a.masks[0].len()).map(of_row).find(|&differ: &u32| differ > 0).unwrap_or(0)
}

/// Of half a million scores hardly one is so near a threshold that f32 and f64 see it on different sides; those that tie exactly,
/// zeros and counts of signs, are kept, or not, together.
#[test]
fn the_cpu_selects_what_the_reference_selects() {
    let (mut worst, mut all, mut sparse, mut ties) = (0.0f64, 0, 0, BTreeSet::new());
    for (which, spec) in sparse_specs().into_iter().enumerate() {
        let tokens = ids(&spec, 2, 30);
        for text in SELECTORS.split_whitespace() {
            let (model, selector) = ready(&spec, text);
            for calls in [vec![30], calls_of(1, 30), vec![12, 3, 1, 8, 6]] {
                let mut plain = on(&Arc::new(Reference), &model, &selector, dense_kv());
                let mut kept = Recorder::default();
                let expected = prefill_observed(&mut plain, 0, &tokens, &calls, &mut kept);
                let (fractions, bytes) = (plain.stats().active_fraction_per_layer(), plain.stats().layer_bytes);
                (all, sparse) = (all + 1, sparse + u32::from(plain.stats().active_fraction() < 0.95));
                if selector.selects_neurons() && !text.starts_with("weighted") {
                    let keeps = |layer: usize, row: usize, i: usize| kept.keeps(layer, row, i);
                    let masked = reference::logits(&model, &tokens, &calls, &keeps);
                    assert_exact(text, &expected, &masked);
                }
                for cpu in tiers() {
                    let what = format!("model {which}, {text}, {} calls, {}", calls.len(), cpu.compute.isa());
                    let mut session = on(cpu, &model, &selector, dense_kv());
                    let mut seen = Recorder::default();
                    let found = prefill_observed(&mut session, 0, &tokens, &calls, &mut seen);
                    if seen.masks != kept.masks {
                        let others = parted(&seen, &kept);
                        assert!(matches!(others, 1 | 2), "{what}: {others} other neurons");
                        ties.insert((which, text));
                        continue;
                    }
                    let difference = worst_difference(&found, &expected);
                    assert!(difference < ROUNDING, "{what}: {difference:.1e} off");
                    worst = worst.max(difference);
                    assert_eq!(session.stats().active_fraction_per_layer(), fractions, "{what}");
                    assert_eq!(session.sequence_stats(0).unwrap(), plain.sequence_stats(0).unwrap(), "{what}");
                    // What a prompt reads is the machine's choice, and so is what a token that needs all neurons reads, as the first
                    // with weights does; of a few neurons of one token it is just these.
                    let few = fractions.iter().all(|&f| f < 0.7) && !text.starts_with("weighted");
                    let just_these = calls.len() == tokens.len() && few;
                    assert!(!just_these || session.stats().layer_bytes == bytes, "{what}: bytes");
                }
            }
        }
    }
    println!("the CPU is {worst:.1e} from the reference; scores within rounding of a threshold: {ties:?}");
    assert!(ties.len() <= 2, "too many to be chance: {ties:?}");
    assert!(sparse * 10 >= all * 8, "{sparse} of {all} runs leave anything out");
}

/// Everything an observer is shown, in order.
#[derive(Default)]
struct Everything(Vec<(usize, Option<Point>, usize, Vec<f32>)>);

impl Observer for Everything {
    fn see(&mut self, layer: usize, point: Point, values: &[f32], m: usize) {
        self.0.push((layer, Some(point), m, values.to_vec()));
    }

    fn mlp(&mut self, layer: usize, h: &[f32], m: usize, _: Option<ActiveNeurons>) {
        self.0.push((layer, None, m, h.to_vec()));
    }
}

#[test]
fn observers_are_shown_the_same() {
    for seed in 0..SPECS {
        let spec = spec(seed);
        let model = Arc::new(random_model(&spec, DType::F32, 4));
        let tokens = ids(&spec, 3, TOKENS);
        let (mut expected, mut found) = (Everything::default(), Everything::default());
        dense(&model).observe(0, &tokens, &mut expected).unwrap();
        on(&exact(), &model, &Selector::Dense, dense_kv()).observe(0, &tokens, &mut found).unwrap();
        assert_eq!(found.0.len(), expected.0.len(), "{seed}");
        assert_eq!(expected.0.len(), spec.num_layers * 6 + 1, "{seed}: points of a layer");
        for (found, expected) in found.0.iter().zip(&expected.0) {
            assert_eq!((found.0, found.1, found.2), (expected.0, expected.1, expected.2), "{seed}");
            let off = difference(&found.3, &expected.3);
            assert!(off < ROUNDING, "{seed}, layer {}, {:?}: {off:.1e} off", found.0, found.1);
        }
    }
}

fn sparse_kv(tail: usize, sinks: usize) -> KvOptions {
    let sparsity = Some(KvSparsity { keys: 0.3, values: 0.5 });
    KvOptions { dtype: Some(DType::F32), sparsity, dense_tail: tail, sinks }
}

#[test]
fn a_sparse_cache_drops_what_the_walk_drops() {
    let plain = ModelSpec { max_position_embeddings: 400, ..odd_spec() };
    let windows = ModelSpec { windows: vec![Some(90), None], attention_soft_cap: Some(2.0), ..plain.clone() };
    for (spec, tail, sinks) in [(plain.clone(), 20, 0), (plain, 64, 5), (windows, 20, 3)] {
        let model = Arc::new(random_model(&spec, DType::F32, 7));
        let tokens = ids(&spec, 2, 240);
        for calls in [vec![1; 240], vec![130, 3, 67, 40]] {
            let pruning = Pruning { sparsity: [0.3, 0.5], sinks, tail };
            let expected = reference::logits_pruned(&model, &tokens, &calls, pruning);
            let mut session = on(&Arc::new(Reference), &model, &Selector::Dense, sparse_kv(tail, sinks));
            let found = prefill_in(&mut session, 0, &tokens, &calls);
            assert_exact(&format!("tail {tail}, sinks {sinks}, {} calls", calls.len()), &found, &expected);
            let kept = prefill_in(&mut dense(&model), 0, &tokens, &calls);
            assert!(worst_difference(&kept, &found) > 1e-2, "dropping changes nothing");
        }
    }
}

/// What a session does with its sequences, and the logits that follow: side by side, cut, copied, reordered, removed and grown.
fn at_work<B: Backend>(session: &mut Session<B>, tokens: &[u32]) -> Vec<Vec<f32>> {
    let vocab = session.model().spec.vocab_size;
    let mut out = Vec::new();
    let mut step = |session: &mut Session<B>, segments: &[(usize, &[u32])]| {
        let segment = |&(sequence, tokens)| Segment { sequence, tokens, logits: Logits::All };
        let segments: Vec<Segment> = segments.iter().map(segment).collect();
        out.extend(session.step(&segments).unwrap().chunks_exact(vocab).map(<[f32]>::to_vec));
    };
    step(session, &[(0, &tokens[..150]), (2, &tokens[50..53])]);
    step(session, &[(2, &tokens[53..54]), (0, &tokens[150..151]), (1, &tokens[..90])]);
    for cut in [149, 140, 100, 67, 3] {
        session.truncate(0, cut).unwrap();
        step(session, &[(0, &tokens[200..270]), (1, &tokens[cut..cut + 1])]);
        session.copy_prefix(0, 2, cut).unwrap();
        step(session, &[(2, &tokens[cut..cut + 66]), (0, &tokens[..1])]);
        step(session, &[(2, &tokens[..2])]);
    }
    session.reorder(&[2, 2, 0]).unwrap();
    step(session, &[(0, &tokens[5..6]), (1, &tokens[6..7]), (2, &tokens[7..8])]);
    session.remove_sequence(1).unwrap();
    assert_eq!(session.add_sequence(80).unwrap(), 1);
    step(session, &[(1, &tokens[..80])]);
    session.grow(1, 200).unwrap();
    step(session, &[(1, &tokens[80..190])]);
    step(session, &[(1, &tokens[190..191])]);
    out
}

#[test]
fn sequences_are_what_they_are_on_the_cpu() {
    let spec = ModelSpec { max_position_embeddings: 400, windows: vec![Some(90), None], ..odd_spec() };
    let tokens = ids(&spec, 4, 300);
    let forced = "forced:active=0.5,overlap=0.5";
    for (text, kv) in [(forced, dense_kv()), ("gate:fixed=-1", sparse_kv(20, 3)), ("skip:mlp=0", sparse_kv(0, 0))] {
        let (model, selector) = ready(&spec, text);
        let expected = at_work(&mut on(&Arc::new(Reference), &model, &selector, kv), &tokens);
        for cpu in tiers() {
            let found = at_work(&mut on(cpu, &model, &selector, kv), &tokens);
            let worst = worst_difference(&found, &expected);
            assert!(worst < ROUNDING, "{text}, {}: {worst:.1e} off", cpu.compute.isa());
        }
    }
}

/// The residual stream leaves the backend and comes back after every layer, in f32.
#[test]
fn layers_can_be_run_one_by_one() {
    for seed in 0..SPECS {
        let spec = spec(seed);
        let model = random_model(&spec, DType::F32, 6);
        let tokens = ids(&spec, 5, TOKENS);
        let mut stream = LayerStream::new(&Reference, &model, &tokens, TOKENS).unwrap();
        for layer in 0..spec.num_layers {
            let selector = &Selector::Dense;
            stream.run(&Run { model: &model, layer, selector, after: After::Advance }, &mut (), |_, _| ()).unwrap();
        }
        let mut found = vec![0.0; TOKENS * spec.vocab_size];
        stream.logits(&model, 0..TOKENS, &mut found).unwrap();
        let found: Vec<Vec<f32>> = found.chunks_exact(spec.vocab_size).map(<[f32]>::to_vec).collect();
        let expected = prefill_in(&mut dense(&Arc::new(model)), 0, &tokens, &[TOKENS]);
        let worst = worst_difference(&found, &expected);
        assert!(worst < ROUNDING, "{seed}: {worst:.1e} off");
    }
}
