//! Logits are the same bits as ever: a hash of them for the golden models, the demo model and stories260k, on the tiers whose
//! arithmetic is the same on all CPUs that have it (AVX-512 has better kernels where there is VNNI or VBMI2), with every selector, stored form and cache. A change that means to alter
//! arithmetic writes the file anew (`SPARROW_WRITE_BITS=1 cargo test -p sparrow --test it bits`) and says so.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;
use std::sync::Arc;

use sparrow::{Cpu, DType, KvOptions, KvSparsity, Load, Model, Selector, Session};
use sparrow_kernels::{Compute, Isa};
use sparrow_testing::*;

/// FNV-1a over the bits of values.
#[derive(Clone, Copy)]
struct Hash(u64);

impl Hash {
    fn add(&mut self, values: &[f32]) {
        for byte in values.iter().flat_map(|v| v.to_bits().to_le_bytes()) {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        }
    }
}

/// A prompt of many rows, one of few, and tokens one by one, of two sequences.
fn hash(cpu: &Arc<Cpu>, model: &Arc<Model>, selector: Selector, kv: KvOptions) -> u64 {
    let mut session: Session = session_with(cpu, model, selector, 2, kv);
    let vocab = model.spec.vocab_size;
    let ids = Random::new(7).ids(vocab, 40.min(session.capacity(0)));
    let (prompt, rest) = ids.split_at(20);
    let mut hash = Hash(0xcbf2_9ce4_8422_2325);
    prefill_in(&mut session, 0, prompt, &[20]).iter().for_each(|logits| hash.add(logits));
    prefill_in(&mut session, 1, &prompt[..12], &[5, 7]).iter().for_each(|logits| hash.add(logits));
    for &token in rest {
        hash.add(session.decode(&[(0, token), (1, token)]).unwrap());
    }
    hash.0
}

/// A model as it is asked for on a tier.
struct Setting<'a> {
    name: &'a str,
    selector: &'a str,
    dtype: Option<DType>,
    format: &'a str,
    placement: &'a str,
    kv: KvOptions,
}

fn setting(name: &str) -> Setting<'_> {
    Setting { name, selector: "dense", dtype: None, format: "dense", placement: "mmap", kv: KvOptions::default() }
}

fn with(cpu: &Arc<Cpu>, dir: &Path, s: &Setting) -> u64 {
    let load = Load::new(dir).cpu(cpu.clone()).selector(parse(s.selector)).dtype(s.dtype);
    let load = load.weights(s.placement.parse().unwrap()).format(s.format.parse().unwrap());
    let loaded = load.open(|_, _, _| ()).unwrap();
    hash(cpu, &loaded.model, loaded.selector, s.kv)
}

fn settings() -> Vec<Setting<'static>> {
    let sparse_kv = KvOptions {
        sparsity: Some(KvSparsity { keys: 0.3, values: 0.5 }),
        dense_tail: 4,
        sinks: 2,
        ..KvOptions::default()
    };
    let mut all = vec![setting("dense")];
    for selector in [
        "gate:fixed=0.05",
        "gate:top-k=70",
        "sign:quantile=0.5",
        "input:quantile=0.4",
        "skip:attention=1,mlp=0",
        "forced:active=0.2,overlap=0.5",
        "forced:active=0.95,overlap=0.5",
    ] {
        all.push(Setting { selector, ..setting(selector) });
    }
    for (name, dtype) in [("int8", DType::I8), ("int4", DType::I4G32), ("int4-g128-zero", DType::I4G128Z)] {
        all.push(Setting { dtype: Some(dtype), ..setting(name) });
        let selector = "gate:top-k=70";
        all.push(Setting { dtype: Some(dtype), selector, ..setting(Box::leak(format!("{name} {selector}").into())) });
    }
    all.push(Setting { format: "bitmap", ..setting("bitmap") });
    all.push(Setting { format: "bitmap", dtype: Some(DType::I8), ..setting("bitmap int8") });
    all.push(Setting { format: "bitmap", selector: "gate:top-k=70", ..setting("bitmap gate:top-k=70") });
    all.push(Setting { kv: sparse_kv, ..setting("sparse cache") });
    all.push(Setting { kv: KvOptions { dtype: Some(DType::I8), ..sparse_kv }, ..setting("sparse int8 cache") });
    all
}

#[test]
fn logits_are_the_same_bits() {
    let mut found = BTreeMap::new();
    for isa in [Isa::Scalar, Isa::Avx2] {
        let Ok(compute) = Compute::with_isa(isa, Some(2)) else {
            eprintln!("skipped: needs {isa}");
            continue;
        };
        let cpu = Arc::new(Cpu { compute });
        let mut add = |name: String, hash: u64| found.insert(format!("{name} / {isa}"), format!("{hash:016x}"));
        let mut goldens: Vec<_> = std::fs::read_dir(goldens_dir()).unwrap().map(|e| e.unwrap().path()).collect();
        goldens.retain(|path| path.is_dir());
        for dir in goldens {
            add(dir.file_name().unwrap().to_string_lossy().into_owned(), with(&cpu, &dir, &setting("dense")));
        }
        let settings = settings();
        for s in &settings {
            add(format!("demo / {}", s.name), with(&cpu, &demo_dir(), s));
        }
        if let Some(dir) = shared_data("models/stories260k") {
            for s in &settings {
                add(format!("stories260k / {}", s.name), with(&cpu, &dir, s));
            }
        }
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/bits.txt");
    if std::env::var_os("SPARROW_WRITE_BITS").is_some() {
        let mut text = String::new();
        found.iter().for_each(|(name, hash)| writeln!(text, "{hash} {name}").unwrap());
        std::fs::write(&path, text).unwrap();
        return;
    }
    let text = std::fs::read_to_string(&path).unwrap();
    let expected: BTreeMap<&str, &str> =
        text.lines().map(|l| l.split_once(' ').unwrap()).map(|(h, n)| (n, h)).collect();
    assert!(found.len() >= 49, "only {} settings ran", found.len());
    let differing: Vec<_> = found.iter().filter(|(n, h)| expected.get(n.as_str()) != Some(&h.as_str())).collect();
    assert!(differing.is_empty(), "{} of {} differ: {differing:#?}", differing.len(), found.len());
}
