//! Directories of bitmaps: they load as they were packed, and say what is packed in them.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use serde_json::{Value, json};
use sparrow::internals::checkpoint::Checkpoint;
use sparrow::{DType, Load, Selector, SelectorSpec, WeightsFormat};
use sparrow_kernels::{decode, encode};
use sparrow_testing::*;
use sparrow_tools::pack::{PackOptions, pack};
use sparrow_tools::sparsify::{SparsifyOptions, sparsify};

fn format(text: &str) -> WeightsFormat {
    text.parse().unwrap()
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
        let layers = load(&dir).spec.num_layers;
        assert_eq!(report.len(), 7 * layers, "{name}");
        assert!(report.iter().all(|t| t.density <= 0.5 && t.bytes_after < t.bytes_before), "{name}: {report:?}");

        let mut expected = load(&dir);
        // The head stays as it is where only what is pruned was quantised.
        let head = expected.weights.head.clone();
        let quantized = loading(expected, SelectorSpec::dense()).dtype(dtype).open(|_, _, _| ()).unwrap().model;
        expected = Arc::into_inner(quantized).unwrap();
        expected.weights_mut().embedding = head.clone();
        expected.weights_mut().head = head;
        let expected = (Arc::new(expected), Selector::dense());
        let packed = load(&out);
        for layer in &packed.weights.layers {
            assert!(is_bitmap(&layer.q.weight) && is_bitmap(&layer.mlp.down.weight), "{name}");
        }
        let ids = &sample_ids()[..24];
        let packed = (Arc::new(packed), Selector::dense());
        let worst =
            worst_difference(&logits_of_all_kinds(&cpu, packed, ids), &logits_of_all_kinds(&cpu, expected, ids));
        // Some rows of codes are multiplied as they are stored, and a bitmap's expanded and packed: sums in another order may
        // tip how activations are rounded to 16 bits.
        let bound = if dtype.is_some_and(|dtype| dtype != DType::I8) { 5e-4 } else { 1e-5 };
        assert!(worst < bound, "{name}: {worst:e} apart");

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
        load(&out);
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
        "global_sparsity": zeros / load(&dir).spec.parameters() as f64,
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
    let open = |dir: &Path, kept: &str| {
        let loaded = Load::new(dir).cpu(cpu.clone()).format(format(kept)).open(|_, _, _| ()).unwrap();
        assert!(loaded.selector.selects_neurons());
        (loaded.model, loaded.selector)
    };
    let down = &load(&packed).weights.layers[0].mlp.down;
    assert!(is_bitmap(&down.weight) && down.input_major);
    let (sparse, packed) = (open(&sparse, "dense"), open(&packed, "auto"));
    assert!(is_bitmap(&packed.0.weights.layers[0].mlp.down.weight));
    let ids = &sample_ids()[..24];
    let worst = worst_difference(&logits_of_all_kinds(&cpu, packed, ids), &logits_of_all_kinds(&cpu, sparse, ids));
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
