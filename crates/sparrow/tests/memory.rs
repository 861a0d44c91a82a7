//! Resident memory of a mapped checkpoint: loading copies nothing, running touches each weight once. The only test of
//! its target: it reads the memory of the whole process.
#![cfg(target_os = "linux")]

use std::sync::Arc;

use sparrow::{DType, KvOptions, Model, Selector, Session, SessionOptions};
use sparrow_testing::*;
use sparrow_tools::synth::synthesize;

/// Bytes of `/proc/self/status`: `VmRSS` counts mapped file pages too, `RssAnon` only what was allocated.
fn status(field: &str) -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix(field)).unwrap();
    1024.0 * line.trim_matches([':', ' ', '\t']).trim_end_matches(" kB").parse::<f64>().unwrap()
}

const MB: f64 = 1e6;

#[test]
fn loading_maps_and_running_stays_within_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model");
    synthesize("smollm2-135m", DType::BF16, false, 0.0, &path, |_, _| ()).unwrap();
    let size = std::fs::metadata(path.join("model.safetensors")).unwrap().len() as f64;
    assert!(size > 250.0 * MB, "the file has {size} bytes");
    let cpu = cpu();
    let (rss, anon) = (status("VmRSS"), status("RssAnon"));

    let mut model = load(&path);
    let loaded = status("VmRSS") - rss;
    assert!(loaded < 20.0 * MB, "loading made {loaded:.0} bytes resident");

    let options = SessionOptions { sequences: 1, capacity: 64, kv: KvOptions::default() };
    let run = |model: Arc<Model>, selector: Selector| {
        let mut session = Session::new(model.clone(), cpu.clone(), selector, options).unwrap();
        // Many rows, then one: no kernel may keep its own copy of the weights.
        session.prefill(0, &[1; 16]).unwrap();
        session.decode(&[(0, 1)]).unwrap();
        let resident = (status("VmRSS") - rss, status("RssAnon") - anon);
        drop(session);
        (Arc::into_inner(model).unwrap(), resident)
    };
    let limit = 1.1 * size + 30.0 * MB;
    let (dense, (resident, allocated)) = run(Arc::new(model), Selector::dense());
    model = dense;
    assert!(resident < limit, "dense: {resident:.0} bytes are resident for a file of {size:.0}");
    assert!(allocated < 30.0 * MB, "dense: {allocated:.0} bytes were allocated");

    // Sparse execution needs down projections in another layout: they replace the mapped ones.
    let (model, selector) = prepare(model, parse("forced:active=0.2,overlap=0.5"));
    let down = model.weights.mlp_bytes() as f64 / 3.0;
    let (_, (resident, allocated)) = run(model, selector);
    assert!(resident < limit, "sparse: {resident:.0} bytes are resident for a file of {size:.0}");
    assert!(allocated < down * 1.05 + 30.0 * MB, "sparse: {allocated:.0} bytes were allocated, {down:.0} are needed");
}
