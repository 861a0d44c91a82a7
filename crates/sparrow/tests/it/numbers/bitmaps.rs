//! Matrices stored as bitmaps: a model computes what it computes with every element stored, whatever else is sparse.

use std::sync::Arc;

use sparrow::internals::spec::ModelSpec;
use sparrow::internals::tensor::Tensor;
use sparrow::internals::weights::{Format, Source, Weights};
use sparrow::{Cpu, DType, Load, Model, Result, Selector, WeightsFormat};
use sparrow_kernels::{decode, encode};
use sparrow_testing::*;
use sparrow_tools::shapes;

/// Random weights of which every third row and the fraction `zeros` of the others are 0.
struct Pruned {
    source: RandomSource,
    zeros: f64,
}

impl Source for Pruned {
    fn matrix(&mut self, name: &str, rows: usize, cols: usize) -> Result<Tensor> {
        let dense = self.source.matrix(name, rows, cols)?;
        if !name.contains("layers") {
            return Ok(dense);
        }
        let mut values = vec![0.0; rows * cols];
        decode(dense.dtype(), dense.bytes(), &mut values);
        let mut random = Random::new(name.len() as u64);
        for (i, value) in values.iter_mut().enumerate() {
            if random.uniform() < self.zeros || self.zeros > 0.0 && (i / cols).is_multiple_of(3) {
                *value = 0.0;
            }
        }
        Tensor::in_memory(dense.dtype(), rows, cols, |out| encode(dense.dtype(), &values, out))
    }

    fn vector(&mut self, name: &str, len: usize) -> Result<Vec<f32>> {
        self.source.vector(name, len)
    }

    fn contains(&self, _: &str) -> bool {
        false
    }
}

fn pruned_model(spec: &ModelSpec, dtype: DType, zeros: f64) -> Model {
    let mut source = Pruned { source: RandomSource { dtype, seed: 21 }, zeros };
    Model { weights: Arc::new(Weights::load(spec, &mut source).unwrap()), ..random_model(spec, dtype, 21) }
}

fn format(text: &str) -> WeightsFormat {
    text.parse().unwrap()
}

/// The model as it is run: selector, then type, then format.
fn made(model: Model, selector: &str, dtype: Option<DType>, kept: &str, cpu: &Arc<Cpu>) -> Runnable {
    let load = Load::made(model).cpu(cpu.clone()).selector(parse(selector)).dtype(dtype).format(format(kept));
    let loaded = load.open(|_, _, _| ()).unwrap();
    (loaded.model, loaded.selector)
}

type Runnable = (Arc<Model>, Selector);

#[test]
fn bitmaps_compute_what_all_elements_do() {
    let spec = odd_spec();
    let ids = Random::new(2).ids(spec.vocab_size, 40);
    for cpu in tiers() {
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            for zeros in [0.0, 0.5, 0.9, 1.0] {
                for quantized in [None, Some(DType::I8), Some(DType::I4G32), Some(DType::I4G128)] {
                    if quantized.is_some() && dtype != DType::BF16 {
                        continue;
                    }
                    let run = |kept| {
                        let made = made(pruned_model(&spec, dtype, zeros), "dense", quantized, kept, cpu);
                        assert_eq!(is_bitmap(&made.0.weights.layers[1].mlp.down.weight), kept == "bitmap");
                        logits_of_all_kinds(cpu, made, &ids)
                    };
                    let (dense, packed) = (run("dense"), run("bitmap"));
                    let worst = worst_difference(&packed, &dense);
                    // Sums in another order; on AMX that may tip how the next operation's inputs are rounded.
                    let rounded = cpu.compute.isa() >= sparrow_kernels::Isa::Avx512Bf16 && dtype == DType::BF16;
                    let most = if rounded { rounded_tolerance(spec.num_layers) } else { 1e-5 };
                    let isa = cpu.compute.isa();
                    assert!(worst <= most, "{isa}, {dtype}, {quantized:?}, {zeros} zeros: {worst:e} apart");
                }
            }
        }
    }
}

#[test]
fn bitmaps_compose_with_every_selector() {
    let spec = odd_spec();
    let ids = Random::new(4).ids(spec.vocab_size, 24);
    let cpu = exact();
    for selector in [
        "gate:quantile=0.6",
        "sign:quantile=0.5",
        "input:quantile=0.4",
        "skip:attention=1",
        "forced:active=0.3,overlap=0.5",
    ] {
        for (dtype, quantized) in [(DType::F32, None), (DType::BF16, None), (DType::BF16, Some(DType::I8))] {
            if selector.starts_with("input") && quantized.is_some() {
                continue;
            }
            let run = |kept| {
                logits_of_all_kinds(&cpu, made(pruned_model(&spec, dtype, 0.6), selector, quantized, kept, &cpu), &ids)
            };
            let (dense, packed) = (run("dense"), run("bitmap"));
            let worst = worst_difference(&packed, &dense);
            assert!(worst <= 2e-5, "{selector}, {dtype}, {quantized:?}: {worst:e} apart");
            // A mixture: gate and up whole, down a bitmap, and the other way round.
            for mixed in ["dense,*.down_proj.*=bitmap", "bitmap,*.down_proj.*=dense,*.up_proj.*=dense"] {
                let worst = worst_difference(&run(mixed), &dense);
                assert!(worst <= 2e-5, "{selector}, {dtype}, {quantized:?}, {mixed}: {worst:e} apart");
            }
        }
    }
}

#[test]
fn the_last_rule_that_matches_decides() {
    let rules = format("bitmap,*.down_proj.*=dense,model.layers.1.*=auto");
    assert_eq!(rules.of("model.layers.0.mlp.up_proj.weight"), Format::Bitmap);
    assert_eq!(rules.of("model.layers.0.mlp.down_proj.weight"), Format::Dense);
    assert_eq!(rules.of("model.layers.1.mlp.down_proj.weight"), Format::Auto);
    assert_eq!(format(&rules.to_string()).to_string(), rules.to_string());
    assert_eq!(WeightsFormat::default().to_string(), "auto");
    for (bad, says) in [("sparse", "no format"), ("a=b", "no format"), ("[=dense", "range pattern"), ("", "no format")]
    {
        let message = bad.parse::<WeightsFormat>().unwrap_err();
        assert!(message.contains(says), "{bad:?}: {message}");
    }
}

#[test]
fn auto_packs_what_is_pruned_enough() {
    let cpu = cpu();
    for (zeros, packed) in [(0.0, false), (0.75, true)] {
        for dtype in [None, Some(DType::I8)] {
            let (model, _) = made(pruned_model(&odd_spec(), DType::BF16, zeros), "dense", dtype, "auto", &cpu);
            for layer in &model.weights.layers {
                assert_eq!(is_bitmap(&layer.q.weight), packed);
                assert_eq!(is_bitmap(&layer.mlp.down.weight), packed);
            }
            assert!(!is_bitmap(&model.weights.head) && !is_bitmap(&model.weights.embedding));
        }
    }
}

/// The head is a linear layer like any other; an embedding that is tied to it is looked up in the same bitmap.
#[test]
fn the_head_of_random_weights_is_pruned_and_packed() {
    let ids = Random::new(5).ids(odd_spec().vocab_size, 24);
    let cpu = exact();
    for tied in [true, false] {
        let spec = ModelSpec { tied, ..odd_spec() };
        for (dtype, quantized, head) in [
            (DType::BF16, None, DType::BF16),
            (DType::BF16, Some(DType::I4G32), DType::I8),
            (DType::I8, None, DType::I8),
            (DType::I4G32, None, DType::I8),
        ] {
            let run = |kept: &str| {
                let stored = if quantized.is_some() { "dense" } else { kept };
                let model = shapes::random_model(spec.clone(), dtype, false, 0.75, &format(stored), &cpu).unwrap();
                let made = made(model, "dense", quantized, kept, &cpu);
                let weights = &made.0.weights;
                assert_eq!(is_bitmap(&weights.head), kept == "auto", "{dtype}, {quantized:?}");
                assert_eq!(is_bitmap(&weights.embedding), kept == "auto" && tied, "{dtype}, {quantized:?}");
                assert_eq!((weights.head.dtype(), weights.is_tied()), (head, tied));
                logits_of_all_kinds(&cpu, made, &ids)
            };
            let worst = worst_difference(&run("auto"), &run("dense"));
            assert!(worst <= 1e-5, "tied {tied}, {dtype}, {quantized:?}: {worst:e} apart");
        }
    }
}
