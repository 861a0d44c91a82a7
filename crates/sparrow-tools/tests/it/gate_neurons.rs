//! What `gate` finds of neurons without exact zeros: what each is expected to bring, and what stands for it where it is left out.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use sparrow::internals::backend::Threshold;
use sparrow::internals::select::Method;
use sparrow::{DType, Load, Model, Selector, SelectorSpec};
use sparrow_testing::reference::{activate, linear, values};
use sparrow_testing::*;
use sparrow_tools::eval::evaluate;
use sparrow_tools::sparsify::{Goal, SparsifyOptions, sparsify};
use sparrow_tools::text::windows;

const WINDOW: usize = 64;

/// The demo model as if it had been trained with SiLU.
fn silu(dir: &Path) -> PathBuf {
    let out = dir.join("silu");
    std::fs::create_dir(&out).unwrap();
    for entry in std::fs::read_dir(demo_dir()).unwrap().map(Result::unwrap) {
        std::fs::copy(entry.path(), out.join(entry.file_name())).unwrap();
    }
    let config = std::fs::read_to_string(out.join("config.json")).unwrap();
    std::fs::write(out.join("config.json"), config.replace("\"relu\"", "\"silu\"")).unwrap();
    out
}

fn options(selector: &str, goal: Option<Goal>, max_tokens: usize) -> SparsifyOptions {
    SparsifyOptions { goal, window: WINDOW, max_tokens, ..SparsifyOptions::new(parse(selector), 8) }
}

/// As a few lines of f64 find it, from what the dense model's MLPs were given.
#[test]
fn worth_and_means_are_those_of_the_text() {
    let dir = tempfile::tempdir().unwrap();
    let (model, text, out) = (silu(dir.path()), demo_dir().join("sample.txt"), dir.path().join("out"));
    let made = sparsify(&model, &out, &text, &options("gate", Some(Goal::Active(0.5)), 500), &cpu(), |_, _, _| ());
    let file = made.unwrap().file;
    let Some(Method::Gate(found)) = &file.method else { panic!("{:?}", file.method) };
    assert!(found.weighted);
    let loaded = Load::new(&out).cpu(cpu()).open(|_, _, _| ()).unwrap();
    let sidecar = loaded.model.sidecar.as_ref().unwrap();
    let neurons = sidecar.gate_neurons.as_ref().unwrap();

    let ids = windows(&sample_ids()[..file.calibration.tokens], &[0], WINDOW).unwrap();
    let mut seen = Recorder::default();
    let dense = Arc::new(load(&model));
    let mut session = session(&cpu(), &dense, Selector::dense(), 1, None);
    for window in ids.chunks(WINDOW) {
        session.truncate(0, 0).unwrap();
        session.observe(0, window, &mut seen).unwrap();
    }
    for (l, layer) in dense.weights.layers.iter().enumerate() {
        let Threshold::Fixed(threshold) = found.thresholds[l] else { panic!("{:?}", found.thresholds) };
        let n = layer.mlp.up.outputs();
        let down = values(layer.mlp.down.weight.dense().unwrap()); //                         [hidden, n]
        let norm = |i: usize| down.iter().skip(i).step_by(n).map(|w| w * w).sum::<f64>().sqrt();
        let rows = seen.inputs[l].iter().enumerate().filter(|(row, _)| row % WINDOW != 0);
        let of_row = |h: &Vec<f32>| {
            let h: Vec<f64> = h.iter().map(|&v| f64::from(v)).collect();
            let gate = linear(layer.mlp.gate.as_ref().unwrap(), &h);
            let gate: Vec<f64> = gate.into_iter().map(|v| activate(dense.spec.activation, v)).collect();
            (gate, linear(&layer.mlp.up, &h))
        };
        let rows: Vec<_> = rows.map(|(_, h)| of_row(h)).collect();
        let [weights, left_out] = &neurons[l];
        let (mut kept, mut all) = (0, 0);
        for i in 0..n {
            let worth = norm(i) * rows.iter().map(|(_, up)| up[i].abs()).sum::<f64>() / rows.len() as f64;
            assert!((f64::from(weights[i]) / worth - 1.0).abs() < 1e-3, "layer {l}, {i}: {} {worth}", weights[i]);
            let score = |gate: &[f64]| gate[i].abs() * f64::from(weights[i]);
            let dropped = rows.iter().filter(|(gate, _)| score(gate) <= f64::from(threshold));
            let values: Vec<f64> = dropped.map(|(gate, up)| gate[i] * up[i]).collect();
            let mean = values.iter().sum::<f64>() / values.len().max(1) as f64;
            // A token whose score is within rounding of the threshold may be counted or not.
            let slack = 1e-4 + f64::from(threshold / weights[i]) * 4.0 / values.len().max(1) as f64;
            assert!((f64::from(left_out[i]) - mean).abs() < slack, "layer {l}, {i}: {} {mean}", left_out[i]);
            (kept, all) = (kept + rows.len() - values.len(), all + rows.len());
        }
        let kept = kept as f64 / all as f64;
        assert!((kept - 0.5).abs() < 0.02, "layer {l} keeps {kept}");
    }
}

/// Thresholds that a user names are of plain gates, and so are those of models with exact zeros.
#[test]
fn rules_and_exact_zeros_are_not_weighted() {
    let dir = tempfile::tempdir().unwrap();
    let text = demo_dir().join("sample.txt");
    for (name, model, selector) in [("rule", silu(dir.path()), "gate:quantile=0.5"), ("zeros", demo_dir(), "gate")] {
        let out = dir.path().join(name);
        let file = sparsify(&model, &out, &text, &options(selector, None, 500), &cpu(), |_, _, _| ()).unwrap().file;
        assert!(matches!(&file.method, Some(Method::Gate(found)) if !found.weighted), "{:?}", file.method);
        assert!(load(&out).sidecar.unwrap().gate_neurons.is_none() && !out.join("sparrow.safetensors").exists());
    }
}

/// A trained SiLU model loses less than by the gate alone, at as many neurons.
#[test]
fn a_trained_model_loses_less() {
    let Some(model) = shared_data("models/stories260k") else { return };
    let Some(text) = shared_data("text/tinystories.txt") else { return };
    let dir = tempfile::tempdir().unwrap();
    let ids = {
        let loaded = Load::new(&model).cpu(cpu()).open(|_, _, _| ()).unwrap();
        let all = loaded.tokenizer().unwrap().encode(&std::fs::read_to_string(&text).unwrap(), true).unwrap();
        all[10_000..12_000].to_vec()
    };
    let out = dir.path().join("weighted");
    let goal = Some(Goal::Active(0.6));
    sparsify(&model, &out, &text, &options("gate", goal, 4000), &cpu(), |_, _, _| ()).unwrap();
    let cost = |selector: &str| {
        let load = Load::new(&out).cpu(cpu()).selector(selector.parse::<SelectorSpec>().unwrap());
        let loaded = load.open(|_, _, _| ()).unwrap();
        let of = |model: &Arc<Model>, selector| session(&cpu(), model, selector, 1, Some(DType::F32));
        let (mut dense, mut sparse) =
            (of(&loaded.model, Selector::dense()), of(&loaded.model, loaded.selector.clone()));
        let found = evaluate(&mut dense, &mut sparse, &ids, WINDOW, &mut (), |_| ()).unwrap();
        (found.kl_mean, found.active_fraction)
    };
    let (weighted, active) = cost("gate");
    let (plain, as_many) = cost(&format!("gate:quantile={}", 1.0 - active));
    println!("KL divergence {weighted:.4} weighted at {active:.3}, {plain:.4} by the gate alone at {as_many:.3}");
    assert!((active - as_many).abs() < 0.01 && weighted < 0.8 * plain);
}
