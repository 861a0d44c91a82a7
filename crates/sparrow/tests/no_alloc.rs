//! Decoding allocates nothing once warm, on any thread. The only test of its target: the counter sees the whole process.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use sparrow::internals::backend::Predictor;
use sparrow::internals::spec::ModelSpec;
use sparrow::internals::spec::{BlockNorms, Positions, QkNorm, Rope, names};
use sparrow::internals::text::sample::{SampleOptions, Sampler};
use sparrow::{DType, KvOptions, Model, Placement, Selector};
use sparrow_testing::*;
use sparrow_tools::calibrate::closed_form;

struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: every call is passed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Relaxed);
        // SAFETY: the caller's obligations are those of this method.
        unsafe { System.alloc(layout) }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Relaxed);
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }
    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Relaxed);
        // SAFETY: as above.
        unsafe { System.realloc(pointer, layout, size) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static GLOBAL: Counting = Counting;

/// Steps that must pass without an allocation, and steps within which decoding must be warm. The pool's threads share
/// a stack of buffers: it is complete once as many were in use together as ever are, each of the largest size, and when
/// that has happened is up to the scheduler.
const STEPS: usize = 100;
const AT_MOST: usize = 2000;

fn make(model: Model, predictors: &[Predictor], selector: &str) -> (Arc<Model>, Selector) {
    let spec = parse(selector);
    if spec.name() == "lowrank" {
        let rules = vec![spec.rule().unwrap(); model.spec.num_layers];
        return (Arc::new(model), Selector::low_rank(predictors.to_vec(), true, rules));
    }
    prepare(model, spec)
}

#[test]
fn decoding_allocates_nothing() {
    let demo = demo();
    let small = random_model(&odd_spec(), DType::F32, 0);
    let Positions::Rope { full, .. } = odd_spec().positions else { panic!("a Llama has rotary embeddings") };
    let spec = ModelSpec {
        names: names::POST_NORMS,
        block_norms: BlockNorms::After,
        qk_norm: QkNorm::Projection,
        positions: Positions::Rope { full: full.clone(), windowed: Some(Rope { theta: 100.0, ..full }) },
        windows: vec![Some(9), None],
        ..odd_spec()
    };
    let two_ropes = random_model(&spec, DType::F32, 0);
    let cached = Model { placement: "cache:0.5".parse().unwrap(), ..random_model(&odd_spec(), DType::F32, 0) };
    let models = [("demo", demo), ("random", small), ("two ropes", two_ropes), ("cached in memory", cached)];
    for (name, mut model) in models {
        model.weights_mut().make_neuron_major(&cpu().compute, |_, _| ()).unwrap();
        let moments = moments(&identity(model.spec.hidden_size));
        let gates = model.weights.layers.iter().map(|l| l.mlp.deciding());
        let predictors: Vec<_> = gates.map(|gate| closed_form(gate, &moments, 16).unwrap()).collect();
        for selector in [
            "dense",
            "gate:fixed=0",
            "gate:top-k=40",
            "gate:mean-std=1",
            "gate:quantile=0.9",
            "lowrank:fixed=0",
            "lowrank:quantile=0.5",
            "forced:active=0.1,overlap=0.5",
            "sign:quantile=0.5",
            "skip:attention=0,mlp=1",
            // Turns the weights around: last.
            "input:quantile=0.4",
        ] {
            if selector.starts_with("input") && model.placement != Placement::Mapped {
                continue;
            }
            // A sparse cache packs every 64 tokens, which does not allocate either.
            let sparsity = (selector == "dense").then(|| "k=0.3,v=0.5".parse().unwrap());
            let sparse = KvOptions { sparsity, dense_tail: 8, ..KvOptions::default() };
            for (batch, kv) in [(1, sparse), (3, sparse), (1, KvOptions::default()), (3, KvOptions::default())] {
                let (shared, ready) = make(model, &predictors, selector);
                let mut session = session_with(&cpu(), &shared, ready, batch, kv);
                let options =
                    SampleOptions { temperature: 0.8, top_k: 40, top_p: 0.95, min_p: 0.01, ..Default::default() };
                let mut sampler = Sampler::new(options, shared.spec.vocab_size).unwrap();
                let vocab = shared.spec.vocab_size;
                let capacity = session.capacity(0);
                let mut tokens: Vec<(usize, u32)> = (0..batch).map(|s| (s, 1 + s as u32)).collect();
                let (mut before, mut quiet, mut step) = (ALLOCATIONS.load(Relaxed), 0, 0);
                while quiet < STEPS {
                    assert!(step < AT_MOST, "{name}, {selector}, batch {batch}: still allocates after {step} steps");
                    if step % (capacity - 1) == 0 {
                        (0..batch).for_each(|s| session.truncate(s, 0).unwrap());
                    }
                    let logits = session.decode(&tokens).unwrap();
                    for (token, logits) in tokens.iter_mut().zip(logits.chunks_exact(vocab)) {
                        token.1 = sampler.sample(logits);
                        sampler.accept(token.1);
                    }
                    let now = ALLOCATIONS.load(Relaxed);
                    quiet = if now == before { quiet + 1 } else { 0 };
                    (before, step) = (now, step + 1);
                }
                drop(session);
                model = Arc::into_inner(shared).unwrap();
            }
        }
    }
}
