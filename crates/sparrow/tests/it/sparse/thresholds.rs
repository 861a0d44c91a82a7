//! Rules and masks: what they keep is what they say.

use sparrow::internals::backend::{Predictor, Threshold, is_relu_family};
use sparrow::{DType, Load, Model, Selector, SelectorSpec};
use sparrow_testing::reference::{activate, dot, linear, values};
use sparrow_testing::*;
use sparrow_tools::calibrate::closed_form;

/// A small SiLU model beside the ReLU one: its activations have a sign and no zeros.
fn models() -> [(&'static str, Model); 2] {
    [("demo", demo()), ("silu", random_model(&odd_spec(), DType::BF16, 7))]
}

#[test]
fn keeping_everything_is_dense() {
    for (name, model) in models() {
        let tokens = Random::new(1).ids(model.spec.vocab_size, 30);
        let calls = [12, 3, 8, 1, 1, 5];
        let predictors = predictors(&model, 4);
        let (model, _) = prepare(model, parse("gate:fixed=-1"));
        let layers = model.spec.num_layers;
        let dense = prefill_in(&mut session(&exact(), &model, Selector::dense(), 1, None), 0, &tokens, &calls);
        for rule in ["fixed=-1", "quantile=0", "top-k=1000000", "mean-std=-1000"] {
            let rule: Threshold = rule.parse().unwrap();
            // A predicted ReLU gate is compared with its sign: no fixed threshold lets every one through but a very low one.
            let low = if rule == Threshold::Fixed(-1.0) { Threshold::Fixed(-1e9) } else { rule };
            for selector in
                [Selector::gate(vec![rule; layers]), Selector::low_rank(predictors.clone(), false, vec![low; layers])]
            {
                let mut session = session(&exact(), &model, selector, 1, None);
                let found = prefill_in(&mut session, 0, &tokens, &calls);
                let worst = worst_difference(&found, &dense);
                // Default caches are bf16, where a difference in rounding is 2⁻⁸ of a value.
                assert!(worst < 5e-3, "{name}, {rule}: {worst:.1e} from dense");
                assert_eq!(session.stats().active_fraction(), 1.0, "{name}, {rule}");
            }
        }
    }
}

/// A predictor of each layer's gate, for inputs of any direction.
fn predictors(model: &Model, rank: usize) -> Vec<Predictor> {
    let moments = moments(&identity(model.spec.hidden_size));
    let gates = model.weights.layers.iter().map(|l| l.mlp.gate.as_ref().unwrap());
    gates.map(|gate| closed_form(gate, &moments, rank).unwrap()).collect()
}

/// The rule on one row of scores, by sorting. Returns which are kept, and how far each is from changing sides.
fn naive_mask(rule: Threshold, scores: &[f64]) -> (Vec<bool>, Vec<f64>) {
    let n = scores.len();
    let mut sorted = scores.to_vec();
    sorted.sort_by(|a, b| b.total_cmp(a));
    let at_least = |keep: usize| match keep.min(n) {
        0 => (f64::INFINITY, true),
        keep => (sorted[keep - 1], true),
    };
    let (threshold, inclusive) = match rule {
        Threshold::Fixed(t) => (f64::from(t), false),
        // The only case is 0.9.
        Threshold::Sparsity(_) => return naive_mask(Threshold::MeanStd(1.281_551_6), scores),
        Threshold::MeanStd(k) => {
            let mean = scores.iter().sum::<f64>() / n as f64;
            let variance = scores.iter().map(|s| (s - mean).powi(2)).sum::<f64>() / n as f64;
            (mean + f64::from(k) * variance.sqrt(), false)
        }
        Threshold::TopK(k) => at_least(k),
        Threshold::Quantile(q) => at_least(((1.0 - f64::from(q)) * n as f64).round() as usize),
    };
    let kept = scores.iter().map(|&s| s > threshold || (inclusive && s == threshold)).collect();
    (kept, scores.iter().map(|s| (s - threshold).abs()).collect())
}

#[test]
fn threshold_rules_keep_what_they_say() {
    let rules = [
        "fixed=0",
        "fixed=0.07",
        "mean-std=0.5",
        "mean-std=-0.2",
        "sparsity=0.9",
        "top-k=1",
        "top-k=33",
        "quantile=0.93",
        "quantile=0.5",
    ];
    for (name, model) in models() {
        let n = model.spec.intermediate_size;
        let predictors = predictors(&model, 12);
        let relu = is_relu_family(model.spec.activation);
        let (model, _) = prepare(model, parse("gate:fixed=0"));
        let layers = model.spec.num_layers;
        let tokens = Random::new(3).ids(model.spec.vocab_size, 17);
        for rule in rules {
            let rule: Threshold = rule.parse().unwrap();
            for low_rank in [false, true] {
                let selector = match low_rank {
                    false => Selector::gate(vec![rule; layers]),
                    true => Selector::low_rank(predictors.clone(), false, vec![rule; layers]),
                };
                let what = format!("{name}, {rule}, lowrank {low_rank}");
                let mut seen = Recorder::default();
                let mut session = session(&exact(), &model, selector, 1, None);
                prefill_observed(&mut session, 0, &tokens, &[11, 1, 5], &mut seen);
                let (mut naive_active, mut unclear) = (0, 0);
                for (layer, predictor) in predictors.iter().enumerate() {
                    assert_eq!(seen.inputs[layer].len(), tokens.len());
                    let gate = model.weights.layers[layer].mlp.gate.as_ref().unwrap();
                    for (row, h) in seen.inputs[layer].iter().enumerate() {
                        let h: Vec<f64> = h.iter().map(|&v| f64::from(v)).collect();
                        let mut scores = match low_rank {
                            false => linear(gate, &h),
                            true => predicted(predictor, &h),
                        };
                        if !(low_rank && relu) {
                            scores.iter_mut().for_each(|s| *s = activate(model.spec.activation, *s).abs());
                        }
                        let (kept, distance) = naive_mask(rule, &scores);
                        let scale = scores.iter().fold(0.0f64, |m, s| m.max(s.abs()));
                        for i in 0..n {
                            naive_active += usize::from(kept[i]);
                            if seen.keeps(layer, row, i) != kept[i] {
                                assert!(distance[i] < 1e-5 * scale, "{what}, layer {layer}, row {row}, neuron {i}");
                                unclear += 1;
                            }
                        }
                    }
                }
                let all = layers * tokens.len() * n;
                assert!(unclear * 1000 < all, "{what}: {unclear} of {all} are within rounding of the threshold");
                let counted = seen.active_fraction(n);
                assert!((counted - naive_active as f64 / all as f64).abs() < 1e-3, "{what}: {counted} active");
                let stats = session.stats();
                assert!((counted - stats.active_fraction()).abs() < 1e-12, "{what}: {counted} counted, stats differ");
                assert_eq!(stats.active_fraction_per_layer().len(), layers);
                assert_eq!(stats.steps, 3);
            }
        }
    }
}

fn predicted(predictor: &Predictor, h: &[f64]) -> Vec<f64> {
    let (a, b) = (values(&predictor.a), values(&predictor.b));
    let low: Vec<f64> = a.chunks_exact(h.len()).map(|row| dot(row, h)).collect();
    b.chunks_exact(low.len()).zip(&predictor.bias).map(|(row, &bias)| dot(row, &low) + f64::from(bias)).collect()
}

#[test]
fn forced_masks_are_as_asked() {
    for (active, overlap) in [(0.1, 0.9), (0.25, 0.0), (0.1, 0.5), (0.5, 1.0), (0.0, 0.5), (1.0, 0.5)] {
        let (model, selector) = prepare(demo(), SelectorSpec::forced(active, overlap));
        let n = model.spec.intermediate_size;
        let keep = (f64::from(active) * n as f64).round();
        let mut seen = Recorder::default();
        let mut session = session(&exact(), &model, selector, 1, None);
        let tokens = Random::new(0).ids(model.spec.vocab_size, 60);
        prefill_observed(&mut session, 0, &tokens, &[1; 60], &mut seen);
        for masks in &seen.masks {
            let masks: Vec<&Vec<u64>> = masks.iter().map(|m| m.as_ref().unwrap()).collect();
            let count = |m: &[u64]| f64::from(m.iter().map(|w| w.count_ones()).sum::<u32>());
            assert!(masks.iter().all(|m| count(m) == keep), "active {active}");
            for pair in masks.windows(2) {
                let both: Vec<u64> = pair[0].iter().zip(pair[1]).map(|(a, b)| a & b).collect();
                let expected = keep * f64::from(overlap);
                let at_least = 2.0 * keep - n as f64; // two large sets overlap whatever was asked
                assert!((count(&both) - expected.max(at_least)).abs() <= 1.0, "active {active}, overlap {overlap}");
            }
            assert!(overlap == 1.0 || active == 0.0 || active == 1.0 || masks[0] != masks[40], "the sets must move on");
        }
        assert_eq!(session.stats().active_fraction(), keep / n as f64);
    }
    for (active, overlap, field) in [(1.1, 0.5, "active"), (-0.1, 0.5, "active"), (0.1, f32::NAN, "overlap")] {
        let load = loading(demo(), SelectorSpec::forced(active, overlap));
        let message = load.open(|_, _, _| ()).unwrap_err().to_string();
        assert!(message.contains(field), "{message}");
    }
}

#[test]
fn selectors_that_need_calibration_say_so() {
    for (name, model) in models() {
        let message = loading(model, parse("lowrank")).open(|_, _, _| ()).unwrap_err().to_string();
        assert!(message.contains("sparrow sparsify"), "{name}: {message}");
    }
    for (name, model) in models() {
        let gate = loading(model, parse("gate")).open(|_, _, _| ());
        assert_eq!(gate.is_ok(), name == "demo", "only exact zeros need no calibration");
    }
    for (_, model) in models() {
        assert!(Load::made(model).cpu(cpu()).open(|_, _, _| ()).unwrap().selector_spec.is_dense());
    }
}
