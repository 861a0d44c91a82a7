//! The engine against a slow, obvious forward pass in f64 (`sparrow_testing::reference`), over small random models that vary
//! everything a [`ModelSpec`] carries.

use std::sync::Arc;

use sparrow::internals::backend::Threshold;
use sparrow::internals::spec::ModelSpec;
use sparrow::internals::spec::{
    Biases, BlockNorms, Fused, Norm, NormKind, Positions, QkNorm, Rope, RopeScaling, names,
};
use sparrow::{Cpu, DType, Model, Selector, SelectorSpec};
use sparrow_kernels::Activation;
use sparrow_testing::reference::{self, ALL};
use sparrow_testing::*;
use sparrow_tools::calibrate::closed_form;

/// Tokens of every test sequence, and the calls they come in: several kernels' row counts, then decoding.
const CALLS: [usize; 7] = [9, 1, 3, 11, 1, 1, 1];
const TOKENS: usize = 27;

fn rms(offset: f32, eps: f32) -> Norm {
    Norm { kind: NormKind::Rms { offset }, eps }
}

fn sharpened(mut positions: Positions, factor: f32) -> Positions {
    if let Positions::Rope { full, .. } = &mut positions {
        full.attention_factor = factor;
    }
    positions
}

fn yarn(truncate: bool) -> RopeScaling {
    let (beta_fast, beta_slow) = (4.0, 0.3);
    RopeScaling::Yarn { factor: 4.0, beta_fast, beta_slow, truncate, original_max_position_embeddings: 16 }
}

/// A rotation of 8 of 12 dimensions that changes beyond `original` tokens.
fn long_rope(original_max_position_embeddings: usize) -> Positions {
    let (short_factor, long_factor) = (vec![1.0, 1.1, 1.3, 2.0], vec![1.5, 4.0, 9.0, 20.0]);
    let scaling = RopeScaling::LongRope { short_factor, long_factor, original_max_position_embeddings };
    sharpened(rope(100.0, 8, scaling), 1.2)
}

/// Every feature at least once, in the company it has in published models where there is one.
fn specs() -> Vec<(&'static str, ModelSpec)> {
    let llama3 = RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: 16,
    };
    let of = |theta, scaling| Rope { theta, rotary_dim: 12, scaling, attention_factor: 1.0 };
    let two_ropes = Positions::Rope {
        full: of(1e6, RopeScaling::Linear { factor: 8.0 }),
        windowed: Some(of(100.0, RopeScaling::None)),
    };
    let all_biases = Biases { qkv: true, output: true, mlp: true };
    vec![
        ("llama", odd_spec()),
        (
            "relu, tied, llama3 rope",
            ModelSpec { activation: Activation::Relu, tied: true, positions: rope(500.0, 12, llama3), ..odd_spec() },
        ),
        (
            "qwen 2: biases on q, k, v; one key head",
            ModelSpec {
                biases: Biases { qkv: true, ..Biases::default() },
                num_heads: 5,
                num_kv_heads: 1,
                head_dim: 10,
                hidden_size: 50,
                intermediate_size: 131,
                positions: rope(1e6, 10, RopeScaling::None),
                attention_scale: 0.4,
                ..odd_spec()
            },
        ),
        (
            "qwen 3: norms of queries and keys",
            ModelSpec {
                qk_norm: QkNorm::Head,
                num_heads: 4,
                num_kv_heads: 2,
                head_dim: 22,
                num_layers: 3,
                windows: vec![None; 3],
                positions: rope(1e4, 22, RopeScaling::Linear { factor: 2.5 }),
                attention_scale: 22f32.powf(-0.5),
                tied: true,
                ..odd_spec()
            },
        ),
        (
            "gemma 2: offset norms after blocks too, soft caps, windows, scaled embeddings",
            ModelSpec {
                norm: rms(1.0, 1e-6),
                names: names::POST_NORMS,
                block_norms: BlockNorms::BeforeAndAfter,
                activation: Activation::GeluTanh,
                head_dim: 18,
                positions: rope(1e4, 18, RopeScaling::None),
                attention_scale: 24f32.powf(-0.5),
                attention_soft_cap: Some(2.0),
                logits_soft_cap: Some(3.0),
                num_layers: 3,
                windows: vec![Some(5), None, Some(1)],
                embedding_scale: 72f32.sqrt(),
                tied: true,
                ..odd_spec()
            },
        ),
        (
            "gemma 3: norms everywhere, windows",
            ModelSpec {
                norm: rms(1.0, 1e-6),
                names: names::POST_NORMS,
                block_norms: BlockNorms::BeforeAndAfter,
                qk_norm: QkNorm::Head,
                activation: Activation::GeluTanh,
                embedding_scale: 72f32.sqrt(),
                num_layers: 3,
                windows: vec![Some(10), None, Some(100)],
                positions: two_ropes,
                ..odd_spec()
            },
        ),
        (
            "olmo 2: norms after blocks only, and over queries and keys whole",
            ModelSpec {
                names: names::POST_NORMS,
                block_norms: BlockNorms::After,
                qk_norm: QkNorm::Projection,
                positions: rope(50.0, 12, yarn(true)),
                ..odd_spec()
            },
        ),
        (
            "opt: layer norms, learned positions, no gate, biases",
            ModelSpec {
                names: names::OPT,
                norm: Norm { kind: NormKind::Layer, eps: 1e-5 },
                positions: Positions::Learned { offset: 2 },
                gated: false,
                activation: Activation::Relu,
                biases: all_biases,
                num_kv_heads: 6,
                tied: true,
                ..odd_spec()
            },
        ),
        (
            "phi: part of a head rotated, fused projections",
            ModelSpec {
                fused: Fused { qkv: true, gate_up: true },
                biases: all_biases,
                head_dim: 20,
                positions: rope(1e4, 8, RopeScaling::None),
                activation: Activation::Gelu,
                ..odd_spec()
            },
        ),
        (
            "phi 3: long rope, beyond its original length from the start",
            ModelSpec {
                fused: Fused { qkv: true, gate_up: true },
                positions: long_rope(8),
                windows: vec![Some(20); 2],
                ..odd_spec()
            },
        ),
        (
            "yarn between whole dimensions, sharpened",
            ModelSpec { positions: sharpened(rope(1e3, 12, yarn(false)), 1.3), ..odd_spec() },
        ),
        (
            "dynamic rope, passed on the way",
            ModelSpec {
                max_position_embeddings: 16,
                positions: rope(1e4, 12, RopeScaling::Dynamic { factor: 4.0 }),
                activation: Activation::GeluSigmoid,
                ..odd_spec()
            },
        ),
        (
            "squared relu, biases in the mlp, loose epsilon",
            ModelSpec {
                norm: rms(0.0, 0.1),
                activation: Activation::ReluSquared,
                biases: Biases { mlp: true, ..Biases::default() },
                ..odd_spec()
            },
        ),
        (
            "layer norms of heads, no gate, no activation, fused",
            ModelSpec {
                norm: Norm { kind: NormKind::Layer, eps: 1e-3 },
                qk_norm: QkNorm::Head,
                gated: false,
                activation: Activation::Identity,
                fused: Fused { qkv: true, gate_up: false },
                positions: Positions::Learned { offset: 0 },
                embedding_scale: 0.5,
                ..odd_spec()
            },
        ),
        (
            "as small as can be",
            ModelSpec {
                vocab_size: 3,
                hidden_size: 3,
                intermediate_size: 1,
                num_heads: 1,
                num_kv_heads: 1,
                head_dim: 2,
                num_layers: 1,
                windows: vec![None],
                positions: rope(1e4, 2, RopeScaling::None),
                ..odd_spec()
            },
        ),
        (
            "wide enough for several threads",
            ModelSpec {
                hidden_size: 333,
                intermediate_size: 700,
                vocab_size: 401,
                num_heads: 9,
                head_dim: 34,
                positions: rope(1e4, 34, RopeScaling::None),
                ..odd_spec()
            },
        ),
    ]
}

#[test]
fn error_function_of_known_values() {
    for (x, y) in
        [(0.0, 0.0), (0.5, 0.520_499_877_813_046_5), (1.0, 0.842_700_792_949_714_9), (3.0, 0.999_977_909_503_001_4)]
    {
        assert!(
            (reference::erf(x) - y).abs() < 1e-15 && (reference::erf(-x) + y).abs() < 1e-15,
            "erf({x}) = {}",
            reference::erf(x)
        );
    }
}

/// Bound on the logits' error relative to the largest: f32 rounding (2⁻²⁴) of every value on the residual stream's way,
/// which is 4 operations a layer and the head, each a sum whose error grows with the root of its length. Weights are read
/// exactly and products accumulate in f32 whatever their dtype, so the bound is the same for f32, f16 and bf16, unless
/// activations are rounded too.
fn tolerance(cpu: &Cpu, dtype: DType, spec: &ModelSpec) -> f64 {
    if rounds(cpu, dtype) {
        return rounded_tolerance(spec.num_layers);
    }
    let longest = spec.hidden_size.max(spec.intermediate_size).max(spec.q_size()).max(TOKENS) as f64;
    let operations = (4 * spec.num_layers + 1) as f64;
    let bound = 2f64.powi(-24) * operations * (longest.sqrt() + 16.0);
    // A squared activation doubles relative errors; a cap near saturation hides none of them.
    if spec.activation == Activation::ReluSquared { 2.0 * bound } else { bound }
}

fn compare(what: &str, bound: f64, found: &[Vec<f32>], expected: &[Vec<f64>]) {
    assert_eq!(found.len(), expected.len());
    let mut worst = 0.0f64;
    for (position, (found, expected)) in found.iter().zip(expected).enumerate() {
        let difference = difference_f64(found, expected);
        assert!(
            difference <= bound,
            "{what}, position {position}: logits differ by {difference:.1e}, bound {bound:.1e}"
        );
        worst = worst.max(difference / bound);
    }
    println!("{what}: {worst:.2} of the bound");
}

#[test]
fn dense_logits() {
    for (seed, (name, spec)) in specs().into_iter().enumerate() {
        for dtype in [DType::F32, DType::BF16, DType::F16] {
            let mut model = random_model(&spec, dtype, seed as u64);
            let tokens = Random::new(seed as u64).ids(spec.vocab_size, TOKENS);
            let expected = reference::logits(&model, &tokens, &CALLS, ALL);
            for neuron_major in [false, true] {
                if neuron_major {
                    model.weights_mut().make_neuron_major(&cpu().compute, |_, _| ()).unwrap();
                }
                let shared = Arc::new(model);
                for cpu in tiers() {
                    let mut session = session(cpu, &shared, Selector::dense(), 1, Some(DType::F32));
                    let found = prefill_in(&mut session, 0, &tokens, &CALLS);
                    let what = format!("{name}, {dtype:?}, neuron-major {neuron_major}, {}", cpu.compute.isa());
                    compare(&what, tolerance(cpu, dtype, &spec), &found, &expected);
                }
                model = Arc::into_inner(shared).unwrap();
            }
        }
    }
}

/// LongRoPE crosses its original length forth and, after a truncation, back: by prefilling and by decoding, and alone
/// of its batch.
#[test]
fn long_rope_crossed_on_the_way() {
    let spec = ModelSpec { positions: long_rope(12), ..odd_spec() };
    let model = Arc::new(random_model(&spec, DType::F32, 7));
    let tokens = Random::new(7).ids(spec.vocab_size, TOKENS);
    let bound = tolerance(&cpu(), DType::F32, &spec);
    let check = |what: &str, found: &[Vec<f32>], calls: &[usize], from: usize| {
        let expected = reference::logits(&model, &tokens[..calls.iter().sum()], calls, ALL);
        compare(what, bound, found, &expected[from..]);
    };
    let mut session = session(&cpu(), &model, Selector::dense(), 2, Some(DType::F32));
    check("in calls", &prefill_in(&mut session, 0, &tokens, &CALLS), &CALLS, 0);
    session.truncate(0, 4).unwrap();
    check("back", &prefill_in(&mut session, 0, &tokens[4..10], &[6]), &[4, 6], 4);
    check("decoded", &decode_each(&mut session, 0, &tokens[10..16]), &[10, 1, 1, 1, 1, 1, 1], 10);

    session.truncate(0, 0).unwrap();
    prefill_in(&mut session, 0, &tokens[..12], &[12]);
    prefill_in(&mut session, 1, &tokens[..3], &[3]);
    let both = session.decode(&[(1, tokens[3]), (0, tokens[12])]).unwrap();
    let both: Vec<Vec<f32>> = both.chunks_exact(spec.vocab_size).map(<[f32]>::to_vec).collect();
    check("beside one that does not cross", &both[..1], &[3, 1], 3);
    check("beside one that does not cross", &both[1..], &[12, 1], 12);
}

/// Quantised weights against the same quantised weights. Int8 activations are rounded to 127 steps: where the engine's `f32`
/// and the reference's `f64` fall on different sides of a rounding, one code of a row differs by one, so the bound is wider.
#[test]
fn quantized_logits() {
    for (seed, (name, spec)) in specs().into_iter().enumerate() {
        for dtype in DType::ALL.into_iter().filter(|t| t.is_quantized() && t.is_writable()) {
            for neuron_major in [false, true] {
                let mut model = random_model(&spec, DType::F32, 200 + seed as u64);
                if neuron_major {
                    model.weights_mut().make_neuron_major(&cpu().compute, |_, _| ()).unwrap();
                }
                let load = loading(model, SelectorSpec::dense()).dtype(dtype);
                let shared = load.open(|_, _, _| ()).unwrap().model;
                let tokens = Random::new(seed as u64).ids(spec.vocab_size, TOKENS);
                // Beyond 8 rows AMX rounds what the reference does not (the kernels' own tests do): int4 weights with their inputs,
                // and the inputs of a neuron-major int8 projection. So calls of few rows there.
                let few = dtype != DType::I8 || neuron_major;
                let calls = if few { &[8, 1, 3, 8, 3, 1, 1, 1, 1][..] } else { &CALLS[..] };
                let expected = reference::logits(&shared, &tokens, calls, ALL);
                for cpu in tiers() {
                    let mut session = session(cpu, &shared, Selector::dense(), 1, Some(DType::F32));
                    let found = prefill_in(&mut session, 0, &tokens, calls);
                    let what = format!("{name}, {dtype}, neuron-major {neuron_major}, {}", cpu.compute.isa());
                    compare(&what, 3e-2, &found, &expected);
                }
            }
        }
    }
}

/// How many [`lossy_selector`]s there are.
const LOSSY: usize = 4;

/// Selectors that fit any model, and drop a good part of its neurons.
fn lossy_selector(mut model: Model, which: usize) -> (&'static str, Arc<Model>, Selector) {
    let name = ["lowrank:mean-std=0.3", "gate:quantile=0.7", "gate:mean-std=0", "forced:active=0.3,overlap=0.5"][which];
    if which > 0 {
        let (model, selector) = prepare(model, parse(name));
        return (name, model, selector);
    }
    let (hidden, layers) = (model.spec.hidden_size, model.spec.num_layers);
    let rank = 20.min(hidden).min(model.spec.intermediate_size);
    let predictor =
        |l: usize| closed_form(model.weights.layers[l].mlp.deciding(), &moments(&identity(hidden)), rank).unwrap();
    let predictors = (0..layers).map(predictor).collect();
    model.weights_mut().make_neuron_major(&cpu().compute, |_, _| ()).unwrap();
    let selector = Selector::low_rank(predictors, false, vec![Threshold::MeanStd(0.3); layers]);
    (name, Arc::new(model), selector)
}

/// The selection is recorded and given to the reference: what is compared is that exactly the selected neurons count, and
/// for the selecting row only, whether they are gathered (few rows) or masked (many).
#[test]
fn masked_logits() {
    for (seed, (name, spec)) in specs().into_iter().enumerate() {
        for dtype in [DType::F32, DType::BF16, DType::F16] {
            let mut model = random_model(&spec, dtype, 100 + seed as u64);
            let tokens = Random::new(seed as u64).ids(spec.vocab_size, TOKENS);
            for which in 0..LOSSY {
                for cpu in tiers() {
                    let (selector_name, shared, selector) = lossy_selector(model, which);
                    let mut session = session(cpu, &shared, selector, 1, Some(DType::F32));
                    let mut seen = Recorder::default();
                    let found = prefill_observed(&mut session, 0, &tokens, &CALLS, &mut seen);
                    let keeps = |layer: usize, row: usize, i: usize| seen.keeps(layer, row, i);
                    let expected = reference::logits(&shared, &tokens, &CALLS, &keeps);
                    let what = format!("{name}, {dtype:?}, {selector_name}, {}", cpu.compute.isa());
                    compare(&what, tolerance(cpu, dtype, &spec), &found, &expected);
                    let counted = seen.active_fraction(spec.intermediate_size);
                    let reported = session.stats().active_fraction();
                    assert!((counted - reported).abs() < 1e-12, "{what}: {counted} counted, {reported} reported");
                    assert!(spec.intermediate_size == 1 || counted < 0.75, "{what}: {counted} is active");
                    drop(session);
                    model = Arc::into_inner(shared).unwrap();
                }
            }
        }
    }
}
