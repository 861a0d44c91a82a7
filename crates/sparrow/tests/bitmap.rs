//! Matrices stored as bitmaps: a model computes what it computes with every element stored, whatever else is sparse.

mod common;

use std::fs;
use std::path::Path;
use std::sync::Arc;

use common::*;
use serde_json::{Value, json};
use sparrow::checkpoint::{Checkpoint, Tensor, Weight};
use sparrow::model::format::Format;
use sparrow::model::weights::{Source, Weights};
use sparrow::pack::{PackOptions, pack};
use sparrow::sparsify::{SparsifyOptions, sparsify};
use sparrow::{Cpu, DType, Model, ModelSpec, Result, WeightsFormat, shapes};
use sparrow_kernels::{decode, encode};

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
    Model { weights: Weights::load(spec, &mut source).unwrap(), ..random_model(spec, dtype, 21) }
}

fn format(text: &str) -> WeightsFormat {
    text.parse().unwrap()
}

/// The model as it is run: selector, then type, then format.
fn made(mut model: Model, selector: &str, dtype: Option<DType>, kept: &str, cpu: &Cpu) -> Runnable {
    let selector = model.prepare(&parse(selector), cpu).unwrap();
    if let Some(dtype) = dtype {
        model.quantize(dtype, cpu, |_, _| ()).unwrap();
    }
    model.set_format(&format(kept), cpu, |_, _| ()).unwrap();
    (Arc::new(model), selector)
}

type Runnable = (Arc<Model>, sparrow::sparsity::Selector);

/// Logits of a prompt, then of single tokens, then of three sequences side by side.
fn logits(cpu: &Arc<Cpu>, (model, selector): Runnable, ids: &[u32]) -> Vec<Vec<f32>> {
    let mut session = session(cpu, &model, selector, 3, Some(DType::F32));
    let (prompt, rest) = ids.split_at(ids.len() / 2);
    let mut out = prefill_in(&mut session, 0, prompt, &[prompt.len()]);
    out.extend(decode_each(&mut session, 0, rest));
    for sequence in 1..3 {
        out.extend(prefill_in(&mut session, sequence, &ids[..3 * sequence], &[3 * sequence]));
    }
    let step = session.decode(&[(0, 1), (1, 2), (2, 3)]).unwrap();
    out.extend(step.chunks_exact(model.spec.vocab_size).map(<[f32]>::to_vec));
    out
}

fn is_bitmap(weight: &Weight) -> bool {
    weight.dense().is_none()
}

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
                        logits(cpu, made, &ids)
                    };
                    let (dense, packed) = (run("dense"), run("bitmap"));
                    let worst = worst_difference(&packed, &dense);
                    // Sums in another order; on AMX that may tip how the next operation's inputs are rounded.
                    let rounded = cpu.compute.isa() == sparrow_kernels::Isa::Amx && dtype == DType::BF16;
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
            let run = |kept| logits(&cpu, made(pruned_model(&spec, dtype, 0.6), selector, quantized, kept, &cpu), &ids);
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
                logits(&cpu, made, &ids)
            };
            let worst = worst_difference(&run("auto"), &run("dense"));
            assert!(worst <= 1e-5, "tied {tied}, {dtype}, {quantized:?}: {worst:e} apart");
        }
    }
}

/// A copy of the demo model, half of every matrix of its layers 0, in `dtype`.
fn pruned_demo(dir: &Path, dtype: DType) {
    fs::create_dir(dir).unwrap();
    for entry in fs::read_dir(demo_dir()).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e == "json") {
            fs::copy(&path, dir.join(path.file_name().unwrap())).unwrap();
        }
    }
    let checkpoint = Checkpoint::open(&demo_dir()).unwrap();
    let mut source = checkpoint;
    let infos: Vec<_> = source.tensors().collect();
    let mut tensors = Vec::new();
    for info in infos {
        let (bytes, kind) = match info.shape[..] {
            [rows, cols] => {
                let tensor = source.matrix(&info.name, rows, cols).unwrap();
                let mut values = vec![0.0; rows * cols];
                decode(tensor.dtype(), tensor.bytes(), &mut values);
                if info.name.contains("layers") {
                    values.iter_mut().skip(1).step_by(2).for_each(|v| *v = 0.0);
                }
                let mut bytes = vec![0; rows * dtype.row_bytes(cols)];
                encode(dtype, &values, &mut bytes);
                (bytes, dtype)
            }
            _ => {
                let values = source.vector(&info.name, info.shape[0]).unwrap();
                (values.iter().flat_map(|v| v.to_le_bytes()).collect(), DType::F32)
            }
        };
        let kind = match kind {
            DType::F32 => safetensors::Dtype::F32,
            DType::F16 => safetensors::Dtype::F16,
            _ => safetensors::Dtype::BF16,
        };
        tensors.push((info.name, kind, info.shape, bytes));
    }
    let views = tensors.iter().map(|(name, kind, shape, bytes)| {
        (name.clone(), safetensors::tensor::TensorView::new(*kind, shape.clone(), bytes).unwrap())
    });
    safetensors::serialize_to_file(views, None, &dir.join("model.safetensors")).unwrap();
}

#[test]
fn a_packed_directory_loads_as_it_was_packed() {
    let temporary = tempfile::tempdir().unwrap();
    let cpu = exact();
    for (stored, dtype) in [
        (DType::F32, None),
        (DType::F16, None),
        (DType::BF16, None),
        (DType::BF16, Some(DType::I8)),
        (DType::BF16, Some(DType::I4G32)),
        (DType::BF16, Some(DType::I4G128)),
    ] {
        let name = format!("{stored}-{}", dtype.map_or("stored", DType::name));
        let (dir, out) = (temporary.path().join(&name), temporary.path().join(format!("{name}-packed")));
        pruned_demo(&dir, stored);
        let options = PackOptions { dtype, format: format("bitmap,*embed*=dense") };
        let report = pack(&dir, &out, &options, &cpu, |_, _| ()).unwrap();
        let layers = Model::load(&dir).unwrap().spec.num_layers;
        assert_eq!(report.len(), 7 * layers, "{name}");
        assert!(report.iter().all(|t| t.density <= 0.5 && t.bytes_after < t.bytes_before), "{name}: {report:?}");

        let mut expected = Model::load(&dir).unwrap();
        if let Some(dtype) = dtype {
            // The head stays as it is where only what is pruned was quantised.
            let head = expected.weights.head.clone();
            expected.quantize(dtype, &cpu, |_, _| ()).unwrap();
            expected.weights.embedding = head.clone();
            expected.weights.head = head;
        }
        let expected = (Arc::new(expected), sparrow::sparsity::Selector::dense());
        let packed = Model::load(&out).unwrap();
        for layer in &packed.weights.layers {
            assert!(is_bitmap(&layer.q.weight) && is_bitmap(&layer.mlp.down.weight), "{name}");
        }
        let ids = &sample_ids()[..24];
        let packed = (Arc::new(packed), sparrow::sparsity::Selector::dense());
        let worst = worst_difference(&logits(&cpu, packed, ids), &logits(&cpu, expected, ids));
        assert!(worst < 1e-5, "{name}: {worst:e} apart");

        let again = pack(&dir, &out, &options, &cpu, |_, _| ()).unwrap_err().to_string();
        assert!(again.contains("already exists"), "{again}");
    }
}

fn config(dir: &Path) -> Value {
    serde_json::from_slice(&fs::read(dir.join("config.json")).unwrap()).unwrap()
}

/// By the fields that compressed-tensors reads, where it can read what was packed.
#[test]
fn a_packed_directory_says_what_is_packed() {
    let temporary = tempfile::tempdir().unwrap();
    let dir = temporary.path().join("pruned");
    pruned_demo(&dir, DType::BF16);
    let described = |name: &str, dtype: Option<DType>, kept: &str| {
        let out = temporary.path().join(name);
        let report = pack(&dir, &out, &PackOptions { dtype, format: format(kept) }, &cpu(), |_, _| ()).unwrap();
        Model::load(&out).unwrap();
        let (mut config, original) = (config(&out), config(&dir));
        let description = config["quantization_config"].take();
        config.as_object_mut().unwrap().retain(|name, _| name != "quantization_config");
        assert_eq!(config, original, "{name}");
        (description, report)
    };
    let (stored, report) = described("stored", None, "auto");
    let zeros: f64 = report.iter().map(|t| (1.0 - t.density) * (t.shape[0] * t.shape[1]) as f64).sum();
    let sparsity = json!({
        "format": "sparse-bitmask", "targets": ["Linear"], "ignore": ["lm_head"], "sparsity_structure": "unstructured",
        "global_sparsity": zeros / Model::load(&dir).unwrap().spec.parameters() as f64,
    });
    assert_eq!(stored, json!({ "quant_method": "compressed-tensors", "sparsity_config": sparsity }));

    let (int8, _) = described("int8", Some(DType::I8), "auto,*.k_proj.*=dense");
    assert_eq!((&int8["format"], &int8["quantization_status"]), (&json!("int-quantized"), &json!("compressed")));
    let keys = (0..5).map(|layer| format!("model.layers.{layer}.self_attn.k_proj"));
    let ignored: Vec<String> = std::iter::once("lm_head".into()).chain(keys).collect();
    assert_eq!((&int8["ignore"], &int8["sparsity_config"]["ignore"]), (&json!(ignored), &json!(ignored)));
    let group = &int8["config_groups"]["group_0"];
    assert_eq!((&group["targets"], &group["weights"]["num_bits"]), (&json!(["Linear"]), &json!(8)));
    assert_eq!((&group["weights"]["strategy"], &group["weights"]["symmetric"]), (&json!("channel"), &json!(true)));

    for (name, dtype, kept) in [("int4", Some(DType::I4G32), "bitmap,*embed*=dense"), ("tied head", None, "bitmap")] {
        assert_eq!(described(name, dtype, kept).0, Value::Null, "{name}");
    }
}

#[test]
fn a_sparsified_directory_packs_with_its_selector() {
    let temporary = tempfile::tempdir().unwrap();
    let [pruned, sparse, packed] = ["pruned", "sparse", "packed"].map(|name| temporary.path().join(name));
    pruned_demo(&pruned, DType::BF16);
    let options = SparsifyOptions { max_tokens: 4096, ..SparsifyOptions::new(parse("gate"), 48) };
    sparsify(&pruned, &sparse, &demo_dir().join("sample.txt"), &options, &cpu(), |_, _, _| ()).unwrap();
    pack(&sparse, &packed, &PackOptions::default(), &cpu(), |_, _| ()).unwrap();
    assert_eq!(config(&packed), config(&sparse), "nothing else reads neuron-major bitmaps");
    let cpu = exact();
    let load = |dir: &Path| {
        let mut model = Model::load(dir).unwrap();
        let selector = model.prepare(&model.default_selector(), &cpu).unwrap();
        assert!(selector.selects_neurons());
        (Arc::new(model), selector)
    };
    let (sparse, packed) = (load(&sparse), load(&packed));
    let down = &packed.0.weights.layers[0].mlp.down;
    assert!(is_bitmap(&down.weight) && down.input_major);
    let ids = &sample_ids()[..24];
    let worst = worst_difference(&logits(&cpu, packed, ids), &logits(&cpu, sparse, ids));
    assert!(worst < 1e-5, "{worst:e} apart");
}

#[test]
fn a_model_without_zeros_is_not_packed() {
    let temporary = tempfile::tempdir().unwrap();
    let out = temporary.path().join("out");
    let message = pack(&demo_dir(), &out, &PackOptions::default(), &cpu(), |_, _| ()).unwrap_err().to_string();
    assert!(message.contains("sparrow prune") && message.contains("--weights-format bitmap"), "{message}");
    assert_eq!(fs::read_dir(temporary.path()).unwrap().count(), 0, "something was left behind");
}

/// A checkpoint that compressed-tensors wrote, with a matrix without zeros and one without anything else: logits and elements
/// are those of the package (see `compressed/README.md`).
#[test]
fn sparse_bitmask_checkpoints_load() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/compressed/sparse-bitmask");
    let model = Arc::new(Model::load(&dir).unwrap());
    let bytes = fs::read(dir.join("golden.safetensors")).unwrap();
    let golden = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let mut compared = 0;
    for (name, weight) in model.weights.named(&model.spec) {
        assert_eq!(is_bitmap(weight), name != "lm_head.weight", "{name}");
        let Ok(dense) = golden.tensor(&format!("dense.{name}")) else { continue };
        let mut expected = vec![0.0; weight.rows() * weight.cols()];
        decode(DType::BF16, dense.data(), &mut expected);
        let mut found = vec![f32::NAN; expected.len()];
        weight.decode(0..weight.rows(), &mut found);
        assert_eq!(found, expected, "{name}");
        compared += 1;
    }
    assert_eq!(compared, 14);
    let numbers = |name: &str| golden.tensor(name).unwrap().data().to_vec();
    let ids: Vec<u32> =
        numbers("input_ids").as_chunks().0.iter().map(|&b| u32::try_from(i64::from_le_bytes(b)).unwrap()).collect();
    let logits: Vec<f32> = numbers("logits").as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect();
    let mut session = session(&exact(), &model, sparrow::sparsity::Selector::dense(), 2, Some(DType::F32));
    let vocab = model.spec.vocab_size;
    for (sequence, (ids, logits)) in ids.chunks(12).zip(logits.chunks(12 * vocab)).enumerate() {
        let found = prefill_in(&mut session, sequence, ids, &[12]);
        let expected: Vec<Vec<f32>> = logits.chunks(vocab).map(<[f32]>::to_vec).collect();
        let worst = worst_difference(&found, &expected);
        assert!(worst < 1e-4, "sequence {sequence}: {worst:e} apart");
    }
}
