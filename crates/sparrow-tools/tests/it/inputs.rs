//! What `sparsify --selector input` finds: norms of columns, one threshold for all sites, and a directory that runs so.

use std::sync::Arc;

use sparrow::internals::backend::{ActiveNeurons, Observer, Point};
use sparrow::internals::select::Method;
use sparrow::internals::weights::Linear;
use sparrow::{DType, KvOptions, Load, Session, SessionOptions};
use sparrow_testing::reference_backend::Reference;
use sparrow_testing::*;
use sparrow_tools::sparsify::{Goal, SparsifyOptions, sparsify};

/// How many of each site's inputs are above their thresholds, and the first token's: 4 sites of each layer.
struct Counted<'a> {
    thresholds: &'a [[f32; 7]],
    norms: &'a [[Vec<f32>; 4]],
    kept: Vec<[usize; 4]>,
}

impl Counted<'_> {
    fn add(&mut self, layer: usize, site: usize, values: &[f32], m: usize) {
        let (threshold, norms) = (self.thresholds[layer][[0, 3, 4, 6][site]], &self.norms[layer][site]);
        for (row, values) in values.chunks_exact(values.len() / m).enumerate() {
            let above = values.iter().zip(norms).filter(|(v, norm)| v.abs() * **norm > threshold).count();
            self.kept[layer][site] += if row == 0 { values.len() } else { above };
        }
    }
}

impl Observer for Counted<'_> {
    fn see(&mut self, layer: usize, point: Point, values: &[f32], m: usize) {
        match point {
            Point::AttentionInput => self.add(layer, 0, values, m),
            Point::Attended => self.add(layer, 1, values, m),
            Point::Neurons => self.add(layer, 3, values, m),
            _ => {}
        }
    }

    fn mlp(&mut self, layer: usize, h: &[f32], m: usize, _: Option<ActiveNeurons>) {
        self.add(layer, 2, h, m);
    }
}

#[test]
fn inputs_are_weighted_by_columns_and_shared_by_sites() {
    let dir = tempfile::tempdir().unwrap();
    let (out, text) = (dir.path().join("input"), demo_dir().join("sample.txt"));
    let goal = Some(Goal::Active(0.6));
    let options = SparsifyOptions { goal, window: 64, ..SparsifyOptions::new(parse("input"), 1) };
    let made = sparsify(&demo_dir(), &out, &text, &options, &cpu(), |_, _, _| ()).unwrap();
    let Some(Method::Input(calibrated)) = &made.file.method else { panic!("{:?}", made.file.method) };
    for [q, k, v, o, gate, up, down] in &calibrated.thresholds {
        assert!(q == k && k == v && gate == up, "projections that read the same input leave out the same");
        assert!([q, o, gate, down].iter().all(|t| **t > 0.0 && t.is_finite()));
    }

    let loaded = Load::new(&out).cpu(cpu()).open(|_, _, _| ()).unwrap();
    assert_eq!(loaded.selector_spec, parse("input"));
    let norms = loaded.model.sidecar.as_ref().unwrap().norms.clone().expect("they are beside the thresholds");
    let original = demo();
    for (layer, found) in original.weights.layers.iter().zip(&*norms) {
        let mlp = &layer.mlp;
        let gate = mlp.gate.as_ref().unwrap();
        let sites: [&[&Linear]; 4] = [&[&layer.q, &layer.k, &layer.v], &[&layer.o], &[gate, &mlp.up], &[&mlp.down]];
        for (linears, found) in sites.iter().zip(found) {
            let mut squares = vec![0.0; found.len()];
            for linear in *linears {
                let values = reference::values(linear.weight.dense().unwrap());
                for row in values.chunks_exact(found.len()) {
                    squares.iter_mut().zip(row).for_each(|(sum, w)| *sum += w * w);
                }
            }
            for (square, &norm) in squares.iter().zip(found) {
                assert!(
                    (square.sqrt() - f64::from(norm)).abs() <= 1e-6 * square.sqrt(),
                    "{norm}, not {}",
                    square.sqrt()
                );
            }
        }
    }

    // It runs so: what is counted here is what the session counts, and a slow backend computes the same.
    let ids = &sample_ids()[..60];
    let kept = vec![[0; 4]; norms.len()];
    let mut counted = Counted { thresholds: &calibrated.thresholds, norms: &norms, kept };
    let mut sparse = session(&exact(), &loaded.model, loaded.selector.clone(), 1, Some(DType::F32));
    sparse.observe(0, ids, &mut counted).unwrap();
    let spec = &loaded.model.spec;
    let outputs = [spec.q_size() + 2 * spec.kv_size(), spec.hidden_size, 2 * spec.intermediate_size, spec.hidden_size];
    let inputs = [spec.hidden_size, spec.q_size(), spec.hidden_size, spec.intermediate_size];
    let per_layer = sparse.stats().active_fraction_per_layer();
    for (kept, &active) in counted.kept.iter().zip(&per_layer) {
        let read: usize = kept.iter().zip(outputs).map(|(kept, outputs)| kept * outputs).sum();
        let all: usize = inputs.iter().zip(outputs).map(|(inputs, outputs)| inputs * outputs * ids.len()).sum();
        // Where magnitudes lie next to a threshold, the order of sums decides.
        assert!((read as f64 / all as f64 - active).abs() < 1e-3, "{read} of {all}, not {active}");
    }
    let active = per_layer.iter().sum::<f64>() / per_layer.len() as f64;
    assert!((active - 0.6).abs() < 0.08, "{active}");

    let kv = KvOptions { dtype: Some(DType::F32), ..KvOptions::default() };
    let options = SessionOptions { sequences: 1, capacity: 64, kv };
    let mut slow = Session::new(loaded.model.clone(), Arc::new(Reference), loaded.selector.clone(), options).unwrap();
    let mut fast = session(&exact(), &loaded.model, loaded.selector.clone(), 1, Some(DType::F32));
    let (slow, fast) = (slow.prefill(0, &ids[..20]).unwrap(), fast.prefill(0, &ids[..20]).unwrap());
    let worst = difference(fast, slow);
    assert!(worst < 2e-3, "{worst:.1e} off");
}
