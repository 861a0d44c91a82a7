//! One small, good model directory, as parts that a test can break before they are written.

use std::path::Path;
use std::sync::{Arc, OnceLock};

use serde_json::{Map, Value, json};
use sparrow::internals::checkpoint::Checkpoint;
use sparrow::internals::record::SidecarFile;
use sparrow::{Cpu, DType, KvOptions, Load, Model, Placement, Result, SessionOptions};
use sparrow_tools::pack::{PackOptions, pack};

pub const HIDDEN: usize = 8;
pub const INTERMEDIATE: usize = 12;
pub const LAYERS: usize = 2;
pub const VOCAB: usize = 16;
pub const RANK: usize = 2;

/// A safetensors file before it is bytes: a header to edit, and the data that follows it.
#[derive(Clone)]
pub struct TensorFile {
    pub header: Map<String, Value>,
    pub data: Vec<u8>,
}

impl TensorFile {
    /// f32 tensors of these names and shapes, one after the other.
    pub fn new(tensors: &[(String, Vec<usize>)]) -> Self {
        let mut file = TensorFile { header: Map::new(), data: Vec::new() };
        for (name, shape) in tensors {
            let start = file.data.len();
            for i in 0..shape.iter().product() {
                let value = if shape.len() == 1 { 1.0 } else { ((i * 7 + start) % 13) as f32 / 13.0 - 0.5 };
                file.data.extend(value.to_le_bytes());
            }
            let info = json!({ "dtype": "F32", "shape": shape, "data_offsets": [start, file.data.len()] });
            file.header.insert(name.clone(), info);
        }
        file
    }

    /// What a good file holds.
    pub fn parse(bytes: &[u8]) -> Self {
        let header = 8 + u64::from_le_bytes(*bytes.first_chunk().unwrap()) as usize;
        let mut parsed: Map<String, Value> = serde_json::from_slice(&bytes[8..header]).unwrap();
        parsed.remove("__metadata__");
        TensorFile { header: parsed, data: bytes[header..].to_vec() }
    }

    /// The bytes of one tensor.
    pub fn tensor(&mut self, name: &str) -> &mut [u8] {
        let range = &self.header[name]["data_offsets"];
        let at = |i: usize| range[i].as_u64().unwrap() as usize;
        &mut self.data[at(0)..at(1)]
    }

    pub fn bytes(&self) -> Vec<u8> {
        framed(Value::Object(self.header.clone()).to_string().as_bytes(), &self.data)
    }
}

/// Length, header, data: the file format, whatever the header is.
pub fn framed(header: &[u8], data: &[u8]) -> Vec<u8> {
    [&(header.len() as u64).to_le_bytes(), header, data].concat()
}

/// Header and data of a safetensors file.
pub fn parts(file: &[u8]) -> (Map<String, Value>, &[u8]) {
    let (len, rest) = file.split_first_chunk().unwrap();
    let (header, data) = rest.split_at(u64::from_le_bytes(*len) as usize);
    (serde_json::from_slice(header).unwrap(), data)
}

/// `config.json` of the tiny model.
pub fn config() -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "relu",
        "hidden_size": HIDDEN, "intermediate_size": INTERMEDIATE, "num_hidden_layers": LAYERS,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4, "vocab_size": VOCAB,
        "max_position_embeddings": 32, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "rope_scaling": {
            "rope_type": "llama3", "factor": 2.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        },
        "tie_word_embeddings": true, "attention_bias": false, "mlp_bias": false, "eos_token_id": [0, 1],
    })
}

/// Names and shapes that [`config`] calls for.
pub fn tensors() -> Vec<(String, Vec<usize>)> {
    let mut all = vec![("model.embed_tokens.weight".to_owned(), vec![VOCAB, HIDDEN])];
    for layer in 0..LAYERS {
        for (part, shape) in [
            ("input_layernorm", vec![HIDDEN]),
            ("post_attention_layernorm", vec![HIDDEN]),
            ("self_attn.q_proj", vec![8, HIDDEN]),
            ("self_attn.k_proj", vec![4, HIDDEN]),
            ("self_attn.v_proj", vec![4, HIDDEN]),
            ("self_attn.o_proj", vec![HIDDEN, 8]),
            ("mlp.gate_proj", vec![INTERMEDIATE, HIDDEN]),
            ("mlp.up_proj", vec![INTERMEDIATE, HIDDEN]),
            ("mlp.down_proj", vec![HIDDEN, INTERMEDIATE]),
        ] {
            all.push((format!("model.layers.{layer}.{part}.weight"), shape));
        }
    }
    all.push(("model.norm.weight".to_owned(), vec![HIDDEN]));
    all
}

/// A tokenizer of 16 words.
pub fn tokenizer() -> Value {
    let vocab: Map<String, Value> = (0..VOCAB).map(|i| (format!("w{i}"), json!(i))).collect();
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": { "type": "Whitespace" }, "post_processor": null, "decoder": null,
        "model": { "type": "WordLevel", "vocab": vocab, "unk_token": "w0" },
    })
}

/// Names and shapes of the predictors in `sparrow.safetensors`.
pub fn predictors() -> Vec<(String, Vec<usize>)> {
    let layer = |l| {
        [
            (format!("sparrow.layers.{l}.predictor.a"), vec![RANK, HIDDEN]),
            (format!("sparrow.layers.{l}.predictor.b"), vec![INTERMEDIATE, RANK]),
            (format!("sparrow.layers.{l}.predictor.bias"), vec![INTERMEDIATE]),
        ]
    };
    (0..LAYERS).flat_map(layer).collect()
}

/// A `sparrow.json` of the low-rank selector, for the checkpoint with that fingerprint.
pub fn sidecar(fingerprint: &str) -> Value {
    let selection = json!({ "recall": 1.0, "precision": 1.0, "true_active_fraction": 0.5 });
    json!({
        "format_version": SidecarFile::VERSION, "fingerprint": fingerprint,
        "method": {
            "lowrank": {
                "rank": RANK, "look_ahead": true, "epochs": 2, "thresholds": [{ "fixed": 0.0 }, { "top-k": 3 }],
            },
        },
        "true_active_above": [0.0, 0.0],
        "calibration": { "file": "text.txt", "sha256": "00", "tokens": 100 },
        "quality": {
            "text": "held out", "tokens": 10, "perplexity": 2.0, "dense_perplexity": 2.0, "kl_mean": 0.0, "kl_p99": 0.0,
            "top1_agreement": 1.0, "active_fraction": 0.5, "active_fraction_per_layer": [0.5, 0.5],
            "selection": [selection, selection], "overlap": [0.5, 0.5],
        },
        "search": [{
            "target_active": 0.5, "active_fraction": 0.5, "perplexity": 2.0, "dense_perplexity": 2.0, "kl_mean": 0.0,
            "accepted": true,
        }],
    })
}

pub fn write(path: &Path, content: impl AsRef<[u8]>) {
    std::fs::write(path, content).unwrap();
}

pub fn write_json(path: &Path, value: &Value) {
    write(path, value.to_string());
}

/// Writes the good model, without a sidecar.
pub fn write_model(dir: &Path) {
    write_json(&dir.join("config.json"), &config());
    write_json(&dir.join("generation_config.json"), &json!({ "eos_token_id": 2 }));
    write_json(&dir.join("tokenizer.json"), &tokenizer());
    write(&dir.join("model.safetensors"), TensorFile::new(&tensors()).bytes());
}

/// Replaces the weights by the same ones as bitmaps, quantised to `dtype` if there is one; the file is returned.
pub fn write_packed(dir: &Path, dtype: Option<DType>) -> TensorFile {
    let out = dir.join("packed");
    let options = PackOptions { dtype, format: "bitmap,*embed*=dense".parse().unwrap() };
    pack(dir, &out, &options, &Cpu::new(Some(1)), |_, _| ()).unwrap();
    let bytes = std::fs::read(out.join("model.safetensors")).unwrap();
    std::fs::remove_dir_all(out).unwrap();
    write(&dir.join("model.safetensors"), &bytes);
    TensorFile::parse(&bytes)
}

/// Replaces `model.safetensors` by two shards and their index, which is returned.
pub fn write_shards(dir: &Path) -> Value {
    std::fs::remove_file(dir.join("model.safetensors")).unwrap();
    let all = tensors();
    let mut weight_map = Map::new();
    for (i, part) in all.chunks(all.len().div_ceil(2)).enumerate() {
        let name = format!("model-{:05}-of-00002.safetensors", i + 1);
        write(&dir.join(&name), TensorFile::new(part).bytes());
        weight_map.extend(part.iter().map(|(tensor, _)| (tensor.clone(), json!(name))));
    }
    let index = json!({ "metadata": {}, "weight_map": weight_map });
    write_json(&dir.join("model.safetensors.index.json"), &index);
    index
}

/// Adds a sidecar and its predictors to a model; the sidecar is returned.
pub fn write_sidecar(dir: &Path) -> Value {
    write(&dir.join(SidecarFile::TENSORS), TensorFile::new(&predictors()).bytes());
    // A refusal says which fingerprint the weights have.
    write_json(&dir.join(SidecarFile::NAME), &sidecar("none"));
    let message = Model::load(dir, Placement::Mapped).unwrap_err().to_string();
    let found = message.split("have ").nth(1).and_then(|rest| rest.split(':').next());
    let value = sidecar(found.unwrap_or_else(|| panic!("no fingerprint in {message:?}")));
    write_json(&dir.join(SidecarFile::NAME), &value);
    value
}

/// Loads the directory, runs one token with the directory's own selector, and tries tokenizer and listing.
pub fn load_and_step(dir: &Path) -> Result<()> {
    static CPU: OnceLock<Arc<Cpu>> = OnceLock::new();
    let cpu = CPU.get_or_init(|| Arc::new(Cpu::new(Some(1))));
    let loaded = Load::new(dir).cpu(cpu.clone()).open(|_, _, _| ())?;
    let tokenizer = loaded.tokenizer()?;
    Checkpoint::open(dir)?.tensors().for_each(drop);
    let ids = tokenizer.encode("w3 w4", true)?;
    let capacity = loaded.model.spec.context_length().min(8);
    let mut session = loaded.session(SessionOptions { sequences: 1, capacity, kv: KvOptions::default() })?;
    tokenizer.decode(&ids)?;
    session.prefill(0, &[ids.first().copied().unwrap_or(0)])?;
    Ok(())
}
