//! Checkpoints of compressed-tensors against what the package itself makes of them: the cases under `compressed/` (see its
//! README).

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};
use sparrow::internals::checkpoint::Checkpoint;
use sparrow::internals::tensor::Tensor;
use sparrow::{DType, KvOptions, Model, Placement, Selector, SelectorSpec, SessionOptions};
use sparrow_kernels::decode;
use sparrow_testing::*;

/// Quantised cases, and the type that their layers have in memory.
const CASES: [(&str, DType); 7] = [
    ("int8-channel", DType::I8),
    ("int8-tensor", DType::I8),
    ("int8-packed", DType::I8),
    ("int4-group-32", DType::I4G32),
    ("int4-group-64-zero", DType::I4G32Z),
    ("int4-group-128-zero", DType::I4G128Z),
    ("int4-channel-zero", DType::I4G128Z),
];

fn case_dir(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/compressed").join(name)
}

/// The values of a float tensor, whatever its type.
fn floats(tensor: &safetensors::tensor::TensorView) -> (DType, Vec<f32>) {
    let dtype = match tensor.dtype() {
        Dtype::F32 => DType::F32,
        Dtype::F16 => DType::F16,
        Dtype::BF16 => DType::BF16,
        other => panic!("{other:?}"),
    };
    let mut values = vec![0.0; tensor.shape().iter().product()];
    decode(dtype, tensor.data(), &mut values);
    (dtype, values)
}

fn values(tensor: &Tensor) -> Vec<f32> {
    let (dtype, cols) = (tensor.dtype(), tensor.cols());
    let mut values = vec![0.0; tensor.rows() * cols];
    let rows = tensor.bytes().chunks_exact(dtype.row_bytes(cols)).zip(values.chunks_exact_mut(cols));
    rows.for_each(|(row, values)| decode(dtype, row, values));
    values
}

/// The package computes code · scale in the scale's type, this crate in f32 with the same scale, rounded to f16 for int4: so
/// they differ by one rounding of the result, and for int4 with scales in f32 by one of the scale.
#[test]
fn decoded_weights_are_those_of_the_package() {
    for (name, stored) in CASES {
        let bytes = fs::read(case_dir(name).join("golden.safetensors")).unwrap();
        let golden = SafeTensors::deserialize(&bytes).unwrap();
        let mut checkpoint = Checkpoint::open(&case_dir(name)).unwrap();
        let mut compared = 0;
        for (tensor, expected) in golden.tensors() {
            let Some(tensor) = tensor.strip_prefix("dense.") else { continue };
            let &[rows, cols] = expected.shape() else { panic!("{tensor}") };
            let found = checkpoint.matrix(tensor, rows, cols).unwrap();
            // With a single group per row, rows of up to 32 columns take the smaller groups.
            assert!(found.dtype() == stored || cols <= 32 && found.dtype().is_quantized(), "{name} {tensor}");
            let (dtype, expected) = floats(&expected);
            let rounding = match dtype {
                DType::BF16 => 2f32.powi(-8),
                DType::F16 => 2f32.powi(-11),
                _ => 0.0,
            };
            for (i, (found, expected)) in values(&found).into_iter().zip(expected).enumerate() {
                // F16's products may be subnormal, with an absolute error.
                let bound = expected.abs() * rounding + if dtype == DType::F16 { 2f32.powi(-25) } else { 0.0 };
                assert!((found - expected).abs() <= bound, "{name} {tensor} {i}: {found}, expected {expected}");
            }
            compared += 1;
        }
        assert!(compared >= 2, "{name}: {compared} tensors");
    }
}

/// The package's weights are rounded to bf16 or f16 after scaling, and int4 layers of a prompt see activations and weights in
/// bf16 on AMX: roundings of the kind that `rounded_tolerance` allows for. Int8 layers round activations to 1/254 of the row's
/// largest, where bf16 rounds to 2⁻⁹ of each: some four times as much.
#[test]
fn logits_are_those_of_the_decompressed_weights() {
    for (name, stored) in CASES {
        let dir = case_dir(name);
        let bytes = fs::read(dir.join("golden.safetensors")).unwrap();
        let golden = SafeTensors::deserialize(&bytes).unwrap();
        let ids = golden.tensor("input_ids").unwrap();
        let &[batch, seq] = ids.shape() else { panic!("{name}") };
        let ids: Vec<u32> = ids.data().as_chunks().0.iter().map(|&b| i64::from_le_bytes(b) as u32).collect();
        let (_, logits) = floats(&golden.tensor("logits").unwrap());
        let vocab = logits.len() / ids.len();
        let logits: Vec<Vec<f32>> = logits.chunks_exact(vocab).map(<[f32]>::to_vec).collect();
        let model = Arc::new(load(&dir));
        assert_eq!(model.weights.dtype(), stored);
        let bound = rounded_tolerance(model.spec.num_layers) * if stored == DType::I8 { 4.0 } else { 1.0 };
        for cpu in tiers() {
            // One sequence in a prompt, which on AMX has kernels of its own, the other token by token.
            let mut session = session(cpu, &model, Selector::dense(), batch, Some(DType::F32));
            for (row, parts) in [(0, vec![seq]), (1, vec![1; seq])] {
                let found = prefill_in(&mut session, row, &ids[row * seq..][..seq], &parts);
                let worst = worst_difference(&found, &logits[row * seq..][..seq]);
                println!("{name}, row {row}, {}: {worst:.1e}, bound {bound:.1e}", cpu.compute.isa());
                assert!(worst < bound, "{name}, row {row}, {cpu:?}: {worst:.1e} off, bound {bound:.1e}");
            }
        }
    }
}

/// A checkpoint that compressed-tensors wrote, with a matrix without zeros and one without anything else: logits and elements
/// are those of the package.
#[test]
fn sparse_bitmask_checkpoints_load() {
    let dir = case_dir("sparse-bitmask");
    let model = Arc::new(load(&dir));
    let bytes = fs::read(dir.join("golden.safetensors")).unwrap();
    let golden = SafeTensors::deserialize(&bytes).unwrap();
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
    let mut session = session(&exact(), &model, Selector::dense(), 2, Some(DType::F32));
    let vocab = model.spec.vocab_size;
    for (sequence, (ids, logits)) in ids.chunks(12).zip(logits.chunks(12 * vocab)).enumerate() {
        let found = prefill_in(&mut session, sequence, ids, &[12]);
        let expected: Vec<Vec<f32>> = logits.chunks(vocab).map(<[f32]>::to_vec).collect();
        let worst = worst_difference(&found, &expected);
        assert!(worst < 1e-4, "sequence {sequence}: {worst:e} apart");
    }
}

#[test]
fn what_is_quantised_cannot_be_quantised_again() {
    let open = |selector: SelectorSpec| loading(load(&case_dir("int8-channel")), selector);
    let quantized = open(SelectorSpec::dense()).dtype(DType::I4G32);
    let message = quantized.open(|_, _, _| ()).unwrap_err().to_string();
    assert!(message.contains("the weights are int8"), "{message}");
}

/// A neuron-major copy of eight bits is made of what cannot be gathered.
#[test]
fn what_is_quantised_can_be_made_neuron_major() {
    let logits = |selector| {
        let loaded = loading(load(&case_dir("int8-channel")), parse(selector)).open(|_, _, _| ()).unwrap();
        let kv = KvOptions { dtype: Some(DType::F32), ..KvOptions::default() };
        let mut session = loaded.session(SessionOptions { sequences: 1, capacity: 16, kv }).unwrap();
        session.prefill(0, &[1, 5, 9, 2]).unwrap().to_vec()
    };
    // Every neuron is kept: what differs is the rounding of the copy.
    let (dense, copied) = (logits("dense"), logits("gate:fixed=0"));
    let largest = dense.iter().fold(0.0f32, |largest, v| largest.max(v.abs()));
    let error = dense.iter().zip(&copied).fold(0.0f32, |error, (a, b)| error.max((a - b).abs()));
    assert!(error > 0.0 && error < 0.02 * largest, "{error} of {largest}");
}

/// A copy of a case to damage.
fn copy(name: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for file in ["config.json", "model.safetensors"] {
        fs::copy(case_dir(name).join(file), dir.path().join(file)).unwrap();
    }
    dir
}

#[track_caller]
fn refused(dir: &Path, says: &[&str]) {
    let message = Model::load(dir, Placement::Mapped).map(|_| ()).unwrap_err().to_string();
    for part in says {
        assert!(message.contains(part), "{message:?} does not say {part:?}");
    }
}

#[test]
fn configurations_that_cannot_be_read_are_refused_by_field() {
    let group = "/quantization_config/config_groups/group_0";
    let cases: [(&str, &str, &str, Value, &[&str]); 14] = [
        (
            "int8-channel",
            "/quantization_config",
            "quant_method",
            json!("gptq"),
            &["quant_method", "\"gptq\"", "compressed-tensors"],
        ),
        (
            "int8-channel",
            "/quantization_config",
            "format",
            json!("float-quantized"),
            &["quantization_config.format", "int-quantized"],
        ),
        ("int8-channel", "/quantization_config", "format", json!(null), &["quantization_config.format is missing"]),
        ("int8-channel", "/quantization_config", "kv_cache_scheme", json!({ "num_bits": 8 }), &["kv_cache_scheme"]),
        (
            "int8-channel",
            "/quantization_config",
            "sparsity_config",
            json!({ "format": "marlin-24" }),
            &["sparsity_config.format", "sparse-bitmask"],
        ),
        ("int8-channel", "/weights", "type", json!("float"), &["group_0.weights.type", "\"float\""]),
        ("int8-channel", "/weights", "num_bits", json!(3), &["weights.num_bits", "is 3"]),
        ("int8-channel", "/weights", "symmetric", json!(false), &["weights.symmetric"]),
        ("int8-channel", "/weights", "strategy", json!("block"), &["weights.strategy", "\"block\"", "channel"]),
        ("int4-group-32", "/weights", "group_size", json!(48), &["weights.group_size", "is 48"]),
        ("int4-group-32", "/weights", "actorder", json!("group"), &["weights.actorder", "static"]),
        (
            "int8-channel",
            "/input_activations",
            "dynamic",
            json!(false),
            &["input_activations.dynamic", "not supported"],
        ),
        ("int8-channel", "", "output_activations", json!({ "num_bits": 8 }), &["group_0.output_activations"]),
        ("int8-channel", "", "weights", json!([8]), &["group_0.weights", "an object"]),
    ];
    for (name, at, field, value, says) in cases {
        let dir = copy(name);
        let path = dir.path().join("config.json");
        let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        let at = if at.starts_with("/quantization_config") { at.to_owned() } else { format!("{group}{at}") };
        config.pointer_mut(&at).unwrap()[field] = value;
        fs::write(&path, config.to_string()).unwrap();
        refused(dir.path(), &[&["config.json"], says].concat());
    }
}

#[test]
fn tensors_that_contradict_each_other_are_refused_by_name() {
    // Which tensor of the first layer to rename or what to change in its header.
    type Change = fn(&mut serde_json::Map<String, Value>, &str);
    let gone: Change = |header, name| {
        let info = header.remove(name).unwrap();
        header.insert("elsewhere".into(), info);
    };
    let flat: Change = |header, name| {
        let info = &mut header[name];
        let len: u64 = info["shape"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).product();
        info["shape"] = json!([len]);
    };
    let turned: Change = |header, name| {
        header[name]["shape"].as_array_mut().unwrap().reverse();
    };
    let floats: Change = |header, name| header[name]["dtype"] = json!("F32");
    let one_group: Change = |header, name| {
        // Twice the rows, half the groups: as many scales as before, none where it should be.
        let shape: Vec<u64> = header[name]["shape"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap()).collect();
        header[name]["shape"] = json!([shape[0] / 2, shape[1] * 2]);
    };
    let cases: [(&str, &str, Change, &[&str]); 9] = [
        ("int8-channel", "q_proj.weight_scale", gone, &["q_proj.weight_scale", "no such tensor"]),
        ("int8-channel", "q_proj.weight_scale", turned, &["q_proj.weight_scale", "shape [12, any]"]),
        ("int8-channel", "q_proj.weight", turned, &["q_proj.weight:", "shape [12, 20]"]),
        ("int4-group-32", "q_proj.weight_shape", gone, &["q_proj.weight_shape", "no such tensor"]),
        ("int4-group-32", "q_proj.weight_packed", gone, &["q_proj.weight:", "no such tensor"]),
        ("int4-group-32", "q_proj.weight_packed", turned, &["q_proj.weight_packed", "shape [32, any]"]),
        ("int4-group-32", "q_proj.weight_packed", floats, &["q_proj.weight_packed", "dtype I32"]),
        ("int4-group-128-zero", "q_proj.weight_zero_point", flat, &["q_proj.weight_zero_point", "shape [2, 1]"]),
        ("int4-group-32", "q_proj.weight_scale", one_group, &["q_proj.weight_scale", "shape [32, any]"]),
    ];
    for (name, tensor, change, says) in cases {
        let dir = copy(name);
        let path = dir.path().join("model.safetensors");
        let bytes = fs::read(&path).unwrap();
        let (header, data) = tiny::parts(&bytes);
        let mut header = header;
        change(&mut header, &format!("model.layers.0.self_attn.{tensor}"));
        fs::write(&path, tiny::framed(Value::Object(header).to_string().as_bytes(), data)).unwrap();
        refused(dir.path(), says);
    }
}

/// Scales that f16 would round to infinity or to few bits are refused, not used.
#[test]
fn scales_beyond_f16_are_refused() {
    for (bits, found) in [(0x4780u16, "6.5536e4"), (0x3301, "3.0"), (0x7f80, "inf"), (0x7fc0, "NaN")] {
        let dir = copy("int4-group-32");
        let path = dir.path().join("model.safetensors");
        let mut bytes = fs::read(&path).unwrap();
        let (header, data) = tiny::parts(&bytes);
        let at = header["model.layers.0.self_attn.q_proj.weight_scale"]["data_offsets"][0].as_u64().unwrap() as usize;
        let at = bytes.len() - data.len() + at;
        bytes[at..at + 2].copy_from_slice(&bits.to_le_bytes());
        fs::write(&path, bytes).unwrap();
        refused(dir.path(), &["q_proj.weight_scale", "scales", found]);
    }
}
