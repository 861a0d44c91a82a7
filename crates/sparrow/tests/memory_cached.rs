//! Resident memory of a model whose MLPs run from the weight cache: what is always needed, and the pools. The only test of its
//! target: it reads the memory of the whole process.
#![cfg(target_os = "linux")]

use sparrow::{DType, KvOptions, Load, SelectorSpec, SessionOptions};
use sparrow_testing::*;
use sparrow_tools::synth::synthesize;

fn resident() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap();
    1024.0 * line.trim().trim_end_matches(" kB").parse::<f64>().unwrap()
}

const MB: f64 = 1e6;

#[test]
fn only_a_fraction_of_the_mlps_is_resident() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model");
    synthesize("smollm2-135m", DType::BF16, true, 0.0, &path, |_, _| ()).unwrap();
    let cpu = cpu();
    let before = resident();
    let load = Load::new(&path).cpu(cpu).weights("cache:0.2".parse().unwrap()).selector(SelectorSpec::forced(0.1, 0.5));
    let loaded = load.open(|_, _, _| ()).unwrap();
    let weights = &loaded.model.weights;
    let mlps = weights.mlp_bytes() as f64;
    let always = weights.bytes() as f64 - mlps;
    let options = SessionOptions { sequences: 1, capacity: 64, kv: KvOptions::default() };
    let mut session = loaded.session(options).unwrap();
    // A prompt streams every neuron through working memory; tokens then fill the pools.
    session.prefill(0, &[1; 16]).unwrap();
    for _ in 0..20 {
        session.decode(&[(0, 1)]).unwrap();
    }
    let used = resident() - before;
    // Working memory of streams, buffers of reads in flight, KV cache.
    let limit = always + 0.2 * mlps + 50.0 * MB;
    assert!(limit < always + 0.6 * mlps, "the model is too small for this test");
    assert!(used > always && used < limit, "{used:.0} bytes are resident: {always:.0} always, {mlps:.0} of MLPs");
}
