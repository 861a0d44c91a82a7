//! A model read from a GGUF file gives the logits of the model that the file was made from.

use std::path::Path;

use serde_json::{Value as Json, json};
use sparrow::internals::checkpoint::ModelFiles;
use sparrow::internals::checkpoint::config::parse_config;
use sparrow::{DType, KvOptions, Load, SelectorSpec, SessionOptions};
use sparrow_testing::gguf::{GgufFile, GgufTensor, Value};
use sparrow_tools::convert::convert;

use super::written;

/// Gemma's norms lose a rounding where 1 is added and taken off again; all else is the same.
const TOLERANCE: f32 = 1e-5;

/// Every architecture, with what its files can say.
fn models() -> Vec<(&'static str, Json)> {
    let with = |class: &str, model_type: &str, more: Json| {
        let mut config = json!({
            "architectures": [class], "model_type": model_type, "vocab_size": 40, "hidden_size": 24, "intermediate_size": 40,
            "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
            "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_theta": 5000.0, "tie_word_embeddings": true,
        });
        config.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        config
    };
    let llama = |more| ("llama", with("LlamaForCausalLM", "llama", more));
    vec![
        llama(json!({})),
        llama(json!({ "tie_word_embeddings": false, "attention_bias": true, "mlp_bias": true })),
        llama(json!({ "rope_scaling": { "rope_type": "linear", "factor": 2.0 } })),
        (
            "qwen2",
            with(
                "Qwen2ForCausalLM",
                "qwen2",
                json!({
                    "rope_scaling": { "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32 },
                }),
            ),
        ),
        ("qwen3", with("Qwen3ForCausalLM", "qwen3", json!({ "tie_word_embeddings": false }))),
        ("gemma", with("GemmaForCausalLM", "gemma", json!({}))),
        (
            "gemma2",
            with(
                "Gemma2ForCausalLM",
                "gemma2",
                json!({
                    "query_pre_attn_scalar": 8, "sliding_window": 5, "attn_logit_softcapping": 1.5, "final_logit_softcapping": 4.0,
                }),
            ),
        ),
        (
            "gemma3",
            with(
                "Gemma3ForCausalLM",
                "gemma3_text",
                json!({
                    "num_hidden_layers": 7, "query_pre_attn_scalar": 8, "sliding_window": 5,
                    "rope_scaling": { "rope_type": "linear", "factor": 8.0 },
                }),
            ),
        ),
        (
            "phi3",
            with(
                "Phi3ForCausalLM",
                "phi3",
                json!({
                    "sliding_window": 6, "original_max_position_embeddings": 16,
                    "rope_scaling": { "rope_type": "longrope", "short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [2.0, 3.0, 4.0, 5.0] },
                }),
            ),
        ),
        ("olmo2", with("Olmo2ForCausalLM", "olmo2", json!({ "tie_word_embeddings": false }))),
    ]
}

fn logits(load: Load) -> Vec<f32> {
    logits_of(load, "dense")
}

fn logits_of(load: Load, selector: &str) -> Vec<f32> {
    let selector: SelectorSpec = selector.parse().unwrap();
    let loaded = load.selector(selector).threads(2).open(|_, _, _| ()).unwrap();
    let options = SessionOptions {
        sequences: 1,
        capacity: 30,
        kv: KvOptions { dtype: Some(DType::F32), ..KvOptions::default() },
    };
    let ids: Vec<u32> = (0..23).map(|i| i * 7 % 40).collect();
    loaded.session(options).unwrap().prefill(0, &ids).unwrap().to_vec()
}

fn assert_close(expected: &[f32], found: &[f32], what: &str) {
    let largest = expected.iter().fold(0.0f32, |largest, v| largest.max(v.abs()));
    let error = expected.iter().zip(found).fold(0.0f32, |error, (a, b)| error.max((a - b).abs()));
    assert!(expected.len() == found.len() && error <= TOLERANCE * largest, "{what}: {error} of {largest}");
}

#[test]
fn models_are_those_that_files_were_made_from() {
    for (i, (architecture, config)) in models().into_iter().enumerate() {
        let spec = parse_config(Path::new("config.json"), &config).unwrap();
        let (file, model) = GgufFile::of_random(architecture, &config, &spec, 40 + i as u64);
        let (dir, path) = written(&file);
        let read =
            parse_config(&path, &ModelFiles::open(&path).unwrap().json("config.json").unwrap().unwrap()).unwrap();
        assert_eq!(read, spec, "{architecture}");
        let expected = logits(Load::made(model));
        assert_close(&expected, &logits(Load::new(&path)), architecture);
        // A converted directory is that model again.
        let out = dir.path().join("out");
        convert(&path, &out, None, |_, _| ()).unwrap();
        assert_close(&expected, &logits(Load::new(&out)), architecture);
        assert!(
            convert(&out, &dir.path().join("again"), None, |_, _| ()).unwrap_err().to_string().contains("no GGUF file")
        );
    }
}

#[test]
fn llama3_frequencies_are_recognised_or_kept() {
    let (_, mut config) = models().remove(0);
    for (original, kind) in [(8192, "llama3"), (32, "longrope")] {
        config["max_position_embeddings"] = 131_072.into();
        config["rope_theta"] = 500_000.0.into();
        config["rope_scaling"] = json!({
            "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": original,
        });
        let spec = parse_config(Path::new("config.json"), &config).unwrap();
        let mut plain = config.clone();
        plain["rope_scaling"] = Json::Null;
        let plain = parse_config(Path::new("config.json"), &plain).unwrap();
        let frequencies = |spec: &sparrow::internals::spec::ModelSpec| {
            let mut out = vec![0.0; spec.head_dim / 2];
            spec.ropes().next().unwrap().frequencies(1, 64, &mut out);
            out
        };
        let divisors: Vec<f32> = frequencies(&plain).iter().zip(frequencies(&spec)).map(|(a, b)| a / b).collect();
        let mut unscaled = config.clone();
        unscaled["rope_scaling"] = Json::Null;
        let (mut file, model) = GgufFile::of_random("llama", &unscaled, &spec, 7);
        file.tensors.push(GgufTensor::f32("rope_freqs.weight", &[divisors.len()], &divisors));
        let (_dir, path) = written(&file);
        let read = ModelFiles::open(&path).unwrap().json("config.json").unwrap().unwrap();
        assert_eq!(read["rope_scaling"]["rope_type"], kind);
        assert_close(&logits(Load::made(model)), &logits(Load::new(&path)), kind);
    }
}

#[test]
fn models_in_several_files() {
    let (architecture, config) = models().remove(0);
    let spec = parse_config(Path::new("config.json"), &config).unwrap();
    let (file, model) = GgufFile::of_random(architecture, &config, &spec, 3);
    let dir = tempfile::tempdir().unwrap();
    let path = |number: usize| dir.path().join(format!("tiny-{number:05}-of-00003.gguf"));
    let u16s = |n: u16| Value::Raw(2, n.to_le_bytes().to_vec());
    let count = file.tensors.len();
    for (i, tensors) in file.tensors.chunks(count.div_ceil(3)).enumerate() {
        let mut part = if i == 0 { file.clone() } else { GgufFile::default() };
        part.tensors = tensors.to_vec();
        part.set("split.no", u16s(i as u16))
            .set("split.count", u16s(3))
            .set("split.tensors.count", Value::U32(count as u32));
        std::fs::write(path(i + 1), part.bytes()).unwrap();
    }
    assert_close(&logits(Load::made(model)), &logits(Load::new(path(1))), "three files");
    let fails = |from: std::path::PathBuf, what: &str| {
        let error = Load::new(from).open(|_, _, _| ()).unwrap_err().to_string();
        assert!(error.contains(what), "{error}");
    };
    fails(path(2), "tiny-00001-of-00003.gguf");
    std::fs::rename(path(3), dir.path().join("gone")).unwrap();
    fails(path(1), "tiny-00003-of-00003.gguf is missing");
    std::fs::copy(path(2), path(3)).unwrap();
    fails(path(1), "there twice");
}

/// Matrices of any bits, with scales that make small values.
fn in_blocks(file: &mut GgufFile, kind: u32, dtype: DType, halves: &[usize]) {
    let format = dtype.block().unwrap();
    let mut state = 88_172_645_463_325_252u64;
    for tensor in file.tensors.iter_mut().filter(|t| t.shape.len() == 2) {
        let elements = tensor.shape.iter().product::<u64>() as usize;
        tensor.kind = kind;
        tensor.data = vec![0; elements / format.elements * format.bytes];
        for byte in &mut tensor.data {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            *byte = (state >> 24) as u8;
        }
        for block in tensor.data.chunks_exact_mut(format.bytes) {
            let scale = if format.elements == 256 { 1e-4 } else { 2e-3 };
            for at in halves {
                block[*at..at + 2].copy_from_slice(&half::f16::from_f32(scale).to_le_bytes());
            }
        }
    }
}

#[test]
fn blocks_as_they_are_give_what_they_stand_for() {
    let (architecture, mut config) = models().remove(0);
    // Rows of whole blocks.
    config["hidden_size"] = 256.into();
    config["head_dim"] = 64.into();
    config["intermediate_size"] = 512.into();
    let spec = parse_config(Path::new("config.json"), &config).unwrap();
    for (kind, dtype, halves) in [
        (2, DType::Q4_0, &[0][..]),
        (3, DType::Q4_1, &[0, 2]),
        (6, DType::Q5_0, &[0]),
        (8, DType::Q8_0, &[0]),
        (12, DType::Q4_K, &[0, 2]),
        (13, DType::Q5_K, &[0, 2]),
        (14, DType::Q6_K, &[208]),
        (23, DType::IQ4_XS, &[0]),
    ] {
        let (mut file, _) = GgufFile::of_random(architecture, &config, &spec, 5);
        in_blocks(&mut file, kind, dtype, halves);
        let (_dir, path) = written(&file);
        let loaded = Load::new(&path).open(|_, _, _| ()).unwrap();
        assert_eq!(loaded.model.weights.dtype(), dtype);
        assert!(loaded.model.decoded.is_none(), "{dtype}");
        let expected = logits(Load::new(&path).dtype(DType::F32));
        let largest = expected.iter().fold(0.0f32, |largest, v| largest.max(v.abs()));
        // Activations have 16 bits; on AMX a prompt rounds both sides to bf16.
        let tolerance = if loaded.cpu.compute.isa() >= sparrow_kernels::Isa::Avx512Bf16 { 3e-2 } else { 1e-3 };
        // A neuron-major copy of the down projections is rounded once more.
        let copied = ("gate:fixed=0", 3e-2);
        for (selector, tolerance) in [("dense", tolerance), copied] {
            let found = logits_of(Load::new(&path), selector);
            let error = expected.iter().zip(&found).fold(0.0f32, |error, (a, b)| error.max((a - b).abs()));
            assert!(error <= tolerance * largest, "{dtype} {selector}: {error} of {largest}");
        }
    }
}

#[test]
fn dtypes_of_what_is_decoded() {
    let (architecture, config) = models().remove(0);
    let spec = parse_config(Path::new("config.json"), &config).unwrap();
    let (mut file, _) = GgufFile::of_random(architecture, &config, &spec, 3);
    let open = |file: &GgufFile, dtype| {
        let (_dir, path) = written(file);
        Load::new(path).dtype(dtype).open(|_, _, _| ()).map(|loaded| loaded.model.weights.dtype())
    };
    assert_eq!(open(&file, None).unwrap(), DType::F32);
    assert_eq!(open(&file, Some(DType::BF16)).unwrap(), DType::BF16);
    assert_eq!(open(&file, Some(DType::I8)).unwrap(), DType::I8);
    // Blocks stay what they are unless something else is asked for.
    let tensor = file.tensors.iter_mut().find(|t| t.name == "blk.0.attn_output.weight").unwrap();
    (tensor.kind, tensor.data) = (8, vec![0; tensor.data.len() / 4 / 32 * 34]);
    for tensor in file.tensors.iter_mut().filter(|t| t.name.contains(".attn_q.")) {
        // A row of 24 is no block; f16 in its stead.
        let values = tensor.data.as_chunks::<4>().0.iter().map(|&b| half::f16::from_f32(f32::from_le_bytes(b)));
        tensor.data = values.flat_map(|v| v.to_le_bytes()).collect();
        tensor.kind = 1;
    }
    assert_eq!(open(&file, None).unwrap(), DType::F16);
    assert_eq!(open(&file, Some(DType::F32)).unwrap(), DType::F32);
}
