//! Models whose MLPs run out of the weight cache compute what models in memory compute, from a store in memory and from
//! files; and files that fail while the model runs are errors, not the end of it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use sparrow::internals::backend::Threshold;
use sparrow::internals::spec::ModelSpec;
use sparrow::{Cpu, DType, Error, Load, Model, Placement, Selector, SelectorSpec, Session};
use sparrow_kernels::Activation;
use sparrow_testing::reference::{activate, linear};
use sparrow_testing::*;
use sparrow_tools::shapes::random_predictors;
use sparrow_tools::synth::synthesize;

/// Between two orders of the same sums in f32.
const ROUNDING: f64 = 2e-5;

fn cache(spec: &str) -> Placement {
    format!("cache:{spec}").parse().unwrap()
}

/// The model in memory, with neuron-major weights, and with its weights where `placement` says.
fn placed(spec: &ModelSpec, dtype: DType, placement: Placement) -> Arc<Model> {
    let stored = if dtype.is_quantized() { DType::F32 } else { dtype };
    let mut model = random_model(spec, stored, 3);
    model.weights_mut().make_neuron_major(&cpu().compute, |_, _| ()).unwrap();
    let made = loading(model, SelectorSpec::dense()).dtype(dtype).open(|_, _, _| ()).unwrap().model;
    let mut model = Arc::into_inner(made).unwrap();
    model.placement = placement;
    Arc::new(model)
}

type MakeSelector = Box<dyn Fn() -> Selector>;

/// A selector of each way to be ready for the cache: with the gate known, from the MLP's input, before attention.
fn selectors(model: &Model) -> Vec<(&'static str, MakeSelector)> {
    let (layers, spec) = (model.spec.num_layers, model.spec.clone());
    let (low, ahead) = (random_predictors(&spec, 8).unwrap(), random_predictors(&spec, 8).unwrap());
    let keep = spec.intermediate_size / 20;
    vec![
        ("gate", Box::new(move || Selector::gate(vec![Threshold::Quantile(0.95); layers]))),
        ("forced", Box::new(move || Selector::forced(&spec, 0.05, 0.7))),
        ("lowrank", Box::new(move || Selector::low_rank(low.clone(), false, vec![Threshold::TopK(keep); layers]))),
        ("look-ahead", Box::new(move || Selector::low_rank(ahead.clone(), true, vec![Threshold::TopK(keep); layers]))),
    ]
}

/// Logits of `steps` steps of `batch` sequences, each with a prompt of its own length first.
fn decoded(cpu: &Arc<Cpu>, model: &Arc<Model>, selector: Selector, batch: usize, steps: usize) -> Vec<Vec<f32>> {
    let mut session = session(cpu, model, selector, batch, None);
    let vocab = model.spec.vocab_size;
    let mut random = Random::new(5);
    let mut logits = Vec::new();
    for _ in 0..steps {
        let tokens: Vec<(usize, u32)> = (0..batch).map(|s| (s, random.ids(vocab, 1)[0])).collect();
        logits.push(session.decode(&tokens).unwrap().to_vec());
    }
    logits
}

/// Small models with what matters to an MLP: gated or not, with biases, activations with and without zeros.
fn specs() -> Vec<ModelSpec> {
    let gated = odd_spec();
    let mut relu = ModelSpec { activation: Activation::Relu, ..odd_spec() };
    relu.biases.mlp = true;
    let ungated = ModelSpec { gated: false, ..relu.clone() };
    vec![gated, relu, ungated]
}

#[test]
fn decoding_from_the_cache_is_the_same_bit_for_bit() {
    for spec in specs() {
        for dtype in [DType::BF16, DType::F32, DType::Q8_0, DType::I4G32] {
            let whole = placed(&spec, dtype, Placement::Mapped);
            for (name, selector) in selectors(&whole) {
                // Room for what so many rows may want, a twentieth each: so few that in memory, too, they are gathered.
                for (batch, room) in [(1, 0.06), (3, 0.17), (8, 0.42)] {
                    let expected = decoded(&cpu(), &whole, selector(), batch, 12);
                    for policy in ["exact", "window=3", "lru"] {
                        let cached = format!("{room},{policy}");
                        let model = placed(&spec, dtype, cache(&cached));
                        let found = decoded(&cpu(), &model, selector(), batch, 12);
                        assert!(found == expected, "{name}, {dtype}, batch {batch}, cache:{cached}");
                    }
                }
            }
        }
    }
}

#[test]
fn a_pool_smaller_than_the_active_set_differs_by_rounding_only() {
    let cpu = exact();
    for spec in specs() {
        let whole = placed(&spec, DType::F32, Placement::Mapped);
        for (name, selector) in selectors(&whole) {
            for batch in [1, 8] {
                let expected = decoded(&cpu, &whole, selector(), batch, 10);
                for cached in ["0.001", "0.03,exact", "0.1,window=2", "0.2"] {
                    let model = placed(&spec, DType::F32, cache(cached));
                    let found = decoded(&cpu, &model, selector(), batch, 10);
                    let worst = worst_difference(&found, &expected);
                    assert!(worst < ROUNDING, "{name}, batch {batch}, cache:{cached}: {worst:.1e}");
                }
            }
        }
    }
}

/// A pool that holds just what the last token wanted: every other neuron must score three times as high.
#[test]
fn neurons_in_the_pool_are_preferred() {
    const KEEP: usize = 40;
    for spec in specs() {
        let run = |placement: &str, rule: Threshold| {
            let model = placed(&spec, DType::F32, cache(placement));
            let selector = Selector::gate(vec![rule; spec.num_layers]);
            let mut session = session(&exact(), &model, selector, 1, Some(DType::F32));
            let mut seen = Recorder::default();
            let tokens = Random::new(5).ids(spec.vocab_size, 20);
            prefill_observed(&mut session, 0, &tokens, &[1; 20], &mut seen);
            (model, seen, session.stats().store_bytes)
        };
        let rule = Threshold::TopK(KEEP);
        let (model, seen, stored) = run("1,exact,prefer=3", rule);
        let (mut unclear, mut moved) = (0, 0);
        for (l, layer) in model.weights.layers.iter().enumerate() {
            for (row, h) in seen.inputs[l].iter().enumerate() {
                let h: Vec<f64> = h.iter().map(|&v| f64::from(v)).collect();
                let size = |v: f64| activate(spec.activation, v).abs();
                let plain: Vec<f64> = linear(layer.mlp.deciding(), &h).into_iter().map(size).collect();
                let there = |i: usize| row > 0 && seen.keeps(l, row - 1, i);
                let lowered = plain.iter().enumerate().map(|(i, &v)| if there(i) { v } else { v / 3.0 });
                let kth = |scores: &[f64]| {
                    let mut sorted = scores.to_vec();
                    sorted.sort_by(|a, b| b.total_cmp(a));
                    sorted[KEEP - 1]
                };
                let lowered: Vec<f64> = lowered.collect();
                let [threshold, without] = [kth(&lowered), kth(&plain)];
                for i in 0..spec.intermediate_size {
                    let keeps = seen.keeps(l, row, i);
                    moved += usize::from(keeps != (plain[i] >= without));
                    if keeps != (lowered[i] >= threshold) {
                        assert!((lowered[i] - threshold).abs() < 1e-5, "layer {l}, row {row}, neuron {i}");
                        unclear += 1;
                    }
                }
            }
        }
        assert!(unclear <= 2 && moved > 50, "{unclear} unclear, {moved} moved");
        assert!(stored < run("1,exact", rule).2, "no fewer are read");

        // Nothing is above nothing: what loses nothing still loses nothing.
        let zero = Threshold::Fixed(0.0);
        assert_eq!(run("1,exact,prefer=3", zero).1.masks, run("1,exact", zero).1.masks);
    }
}

/// Prompts go through every neuron, as a stream, and so does a dense model's decoding.
#[test]
fn prompts_and_dense_models_stream() {
    // Several chunks of a stream, the last one not of whole words.
    let wide = ModelSpec { intermediate_size: 40_013, num_layers: 2, ..odd_spec() };
    let cpu = exact();
    for spec in specs().into_iter().chain([wide]) {
        let whole = placed(&spec, DType::F32, Placement::Mapped);
        let cached = placed(&spec, DType::F32, cache("0.2"));
        let tokens = Random::new(8).ids(spec.vocab_size, 24);
        let dense: MakeSelector = Box::new(Selector::dense);
        // Of many neurons some score is always so near a threshold that rounding decides on which side it falls.
        let decides = |name| name != "forced" && spec.intermediate_size > 1000;
        let selectors = selectors(&whole).into_iter().filter(|&(name, _)| !decides(name));
        for (name, selector) in selectors.chain([("dense", dense)]) {
            let run = |model: &Arc<Model>| {
                let mut session = session(&cpu, model, selector(), 1, Some(DType::F32));
                prefill_in(&mut session, 0, &tokens, &[20, 1, 3])
            };
            let worst = worst_difference(&run(&cached), &run(&whole));
            assert!(worst < ROUNDING, "{name}, {} neurons: {worst:.1e}", spec.intermediate_size);
        }
    }
}

/// A neuron-major directory of random weights.
fn directory(dir: &Path) -> PathBuf {
    let path = dir.join("model");
    synthesize("smollm2-135m", DType::BF16, true, 0.0, &path, |_, _| ()).unwrap();
    path
}

fn run(session: &mut Session, tokens: &[u32]) -> Result<Vec<Vec<f32>>, Error> {
    tokens.iter().map(|&token| session.decode(&[(0, token)]).map(<[f32]>::to_vec)).collect()
}

#[test]
fn every_place_of_the_weights_gives_the_same_text() {
    let dir = tempfile::tempdir().unwrap();
    let path = directory(dir.path());
    let tokens = [1, 500, 7, 40_000, 9, 10];
    for selector in ["forced:active=0.1,overlap=0.8", "gate:quantile=0.8", "look-ahead", "dense"] {
        let mut expected: Option<Vec<Vec<f32>>> = None;
        for place in ["mmap", "ram", "cache:0.3", "cache:0.3,exact", "cache:0.3,lru,mmap"] {
            let open = Load::new(&path).cpu(exact()).weights(place.parse().unwrap()).format(dense_format());
            let (model, selector) = match selector {
                "look-ahead" => {
                    let model = open.selector(SelectorSpec::dense()).open(|_, _, _| ()).unwrap().model;
                    let rules = vec![Threshold::Quantile(0.8); model.spec.num_layers];
                    let predictors = random_predictors(&model.spec, 8).unwrap();
                    (model, Selector::low_rank(predictors, true, rules))
                }
                other => {
                    let loaded = open.selector(parse(other)).open(|_, _, _| ()).unwrap();
                    (loaded.model, loaded.selector)
                }
            };
            let streamed = selector.is_dense() && place.starts_with("cache");
            let mut session = session(&exact(), &model, selector, 1, Some(DType::F32));
            let prompt = session.prefill(0, &[3; 12]).unwrap().to_vec();
            let decoded = run(&mut session, &tokens).unwrap();
            assert_eq!(session.stats().store_bytes > 0, place.starts_with("cache"));
            let all: Vec<_> = [prompt].into_iter().chain(decoded).collect();
            match &expected {
                None => expected = Some(all),
                Some(expected) if streamed => assert!(worst_difference(&all, expected) < ROUNDING, "{place}"),
                // The prompt fills the KV cache and is streamed.
                Some(expected) if place.starts_with("cache") => {
                    assert!(worst_difference(&all, expected) < ROUNDING, "{place}");
                }
                Some(expected) => assert!(all == *expected, "{place}"),
            }
        }
    }
}

/// The shards of a directory.
fn shards(path: &Path) -> Vec<PathBuf> {
    let files = std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path());
    files.filter(|file| file.extension().is_some_and(|e| e == "safetensors")).collect()
}

#[test]
fn a_file_truncated_while_the_model_runs_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let path = directory(dir.path());
    let load = || {
        let load = Load::new(&path).cpu(cpu()).weights(cache("0.1")).selector(SelectorSpec::forced(0.1, 0.5));
        let loaded = load.open(|_, _, _| ()).unwrap();
        session(&cpu(), &loaded.model, loaded.selector, 1, None)
    };
    let tokens = [1, 2, 3, 4, 5];
    let expected = run(&mut load(), &tokens).unwrap();

    let mut session = load();
    let before = run(&mut session, &tokens[..2]).unwrap();
    let whole: Vec<(PathBuf, Vec<u8>)> =
        shards(&path).into_iter().map(|file| (file.clone(), std::fs::read(file).unwrap())).collect();
    for (file, bytes) in &whole {
        std::fs::OpenOptions::new().write(true).open(file).unwrap().set_len(bytes.len() as u64 / 2).unwrap();
    }
    for attempt in [run(&mut session, &tokens[2..3]).err(), session.prefill(0, &[1; 20]).err()] {
        let message = attempt.expect("an error").to_string();
        assert!(message.contains(".safetensors") && message.contains("truncated"), "{message}");
        assert_eq!(session.len(0), 2, "a failed step counts for nothing");
    }
    // Into the same file, as it was.
    for (file, bytes) in &whole {
        std::fs::write(file, bytes).unwrap();
    }
    let after = run(&mut session, &tokens[2..]).unwrap();
    assert_eq!([before, after].concat(), expected);

    // Loading into memory reads the files, not their maps.
    for (file, bytes) in &whole {
        std::fs::write(file, &bytes[..bytes.len() / 2]).unwrap();
    }
    let message = Model::load(&path, Placement::Memory).unwrap_err().to_string();
    assert!(message.contains(".safetensors") && message.contains("truncated"), "{message}");
}

#[test]
fn what_cannot_be_cached_is_refused() {
    let message = Model::load(&demo_dir(), cache("0.5")).unwrap_err().to_string();
    for part in ["weights: cache:0.5,lru", "neuron by neuron", "sparrow sparsify", "demo"] {
        assert!(message.contains(part), "{message}");
    }
    let dir = tempfile::tempdir().unwrap();
    let load = Load::new(directory(dir.path())).cpu(cpu()).weights(cache("0.5")).dtype(DType::I8);
    let message = load.open(|_, _, _| ()).unwrap_err().to_string();
    assert!(message.contains("cannot be quantised"), "{message}");
    for (text, says) in
        [("disk", "use ram, mmap or cache"), ("cache:0", "above 0 and at most 1"), ("cache:x", "a number")]
    {
        let message = text.parse::<Placement>().unwrap_err();
        assert!(message.contains(says), "{message}");
    }
    for text in ["ram", "mmap", "cache:0.25,window=2", "cache:1,lru,mmap"] {
        assert_eq!(text.parse::<Placement>().unwrap().to_string(), text);
    }
}
