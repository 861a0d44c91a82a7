//! GGUF files as parts that a test can break before they are written; and of random models, the parts that files have of them.

use serde_json::Value as Json;
use sparrow::Result;
use sparrow::internals::spec::{ModelSpec, NormKind};
use sparrow::internals::tensor::Tensor;
use sparrow::internals::weights::{Source, Weights};
use sparrow::{DType, Model};
use sparrow_kernels::decode;

use crate::RandomSource;

/// A file before it is bytes.
#[derive(Debug, Clone)]
pub struct GgufFile {
    pub version: u32,
    pub metadata: Vec<(String, Value)>,
    pub tensors: Vec<GgufTensor>,
    pub alignment: usize,
}

/// A value of the metadata.
#[derive(Debug, Clone)]
pub enum Value {
    U32(u32),
    F32(f32),
    Bool(bool),
    Text(String),
    Texts(Vec<String>),
    F32s(Vec<f32>),
    I32s(Vec<i32>),
    /// A type, and the bytes of a value.
    Raw(u32, Vec<u8>),
}

/// A tensor, rows before columns.
#[derive(Debug, Clone)]
pub struct GgufTensor {
    pub name: String,
    pub shape: Vec<u64>,
    pub kind: u32,
    pub data: Vec<u8>,
}

impl Default for GgufFile {
    fn default() -> Self {
        GgufFile { version: 3, metadata: Vec::new(), tensors: Vec::new(), alignment: 32 }
    }
}

impl GgufFile {
    /// Adds or replaces a value.
    pub fn set(&mut self, key: &str, value: Value) -> &mut Self {
        self.metadata.retain(|(name, _)| name != key);
        self.metadata.push((key.to_owned(), value));
        self
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(self.version.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.metadata.len() as u64).to_le_bytes());
        for (key, value) in &self.metadata {
            text(&mut out, key);
            value.write(&mut out);
        }
        let mut offset = 0;
        for tensor in &self.tensors {
            text(&mut out, &tensor.name);
            out.extend((tensor.shape.len() as u32).to_le_bytes());
            tensor.shape.iter().rev().for_each(|n| out.extend(n.to_le_bytes()));
            out.extend(tensor.kind.to_le_bytes());
            out.extend((offset as u64).to_le_bytes());
            offset = (offset + tensor.data.len()).next_multiple_of(self.alignment);
        }
        for tensor in &self.tensors {
            out.resize(out.len().next_multiple_of(self.alignment), 0);
            out.extend(&tensor.data);
        }
        out
    }

    /// The model that `config` describes, with the weights of that seed, as a file in f32; and the same in memory.
    pub fn of_random(architecture: &str, config: &Json, spec: &ModelSpec, seed: u64) -> (Self, Model) {
        let mut recorder = Recorder { source: RandomSource { dtype: DType::F32, seed }, tensors: Vec::new() };
        Weights::load(spec, &mut recorder).unwrap();
        let mut file = GgufFile::default();
        describe(&mut file, architecture, config);
        for (name, shape, mut values) in recorder.tensors {
            let name = gguf_name(&name, spec);
            let heads = if name.contains(".attn_q.") { spec.num_heads } else { spec.num_kv_heads };
            if architecture == "llama" && (name.contains(".attn_q.") || name.contains(".attn_k.")) {
                values = pairs(&values, heads, spec.head_dim, shape.get(1).copied().unwrap_or(1));
            }
            if let NormKind::Rms { offset } = spec.norm.kind
                && name.ends_with("norm.weight")
            {
                values.iter_mut().for_each(|value| *value += offset);
            }
            file.tensors.push(GgufTensor::f32(&name, &shape, &values));
        }
        (file, crate::random_model(spec, DType::F32, seed))
    }
}

impl GgufTensor {
    pub fn f32(name: &str, shape: &[usize], values: &[f32]) -> Self {
        let data = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let shape = shape.iter().map(|&n| n as u64).collect();
        GgufTensor { name: name.to_owned(), shape, kind: 0, data }
    }
}

impl Value {
    fn write(&self, out: &mut Vec<u8>) {
        let mut list = |kind: u32, len: usize, each: &mut dyn FnMut(&mut Vec<u8>)| {
            out.extend(9u32.to_le_bytes());
            out.extend(kind.to_le_bytes());
            out.extend((len as u64).to_le_bytes());
            each(out);
        };
        match self {
            Value::Texts(texts) => list(8, texts.len(), &mut |out| texts.iter().for_each(|t| text(out, t))),
            Value::F32s(values) => {
                list(6, values.len(), &mut |out| values.iter().for_each(|v| out.extend(v.to_le_bytes())))
            }
            Value::I32s(values) => {
                list(5, values.len(), &mut |out| values.iter().for_each(|v| out.extend(v.to_le_bytes())))
            }
            Value::U32(n) => {
                out.extend(4u32.to_le_bytes());
                out.extend(n.to_le_bytes());
            }
            Value::F32(x) => {
                out.extend(6u32.to_le_bytes());
                out.extend(x.to_le_bytes());
            }
            Value::Bool(b) => {
                out.extend(7u32.to_le_bytes());
                out.push(u8::from(*b));
            }
            Value::Text(t) => {
                out.extend(8u32.to_le_bytes());
                text(out, t);
            }
            Value::Raw(kind, bytes) => {
                out.extend(kind.to_le_bytes());
                out.extend(bytes);
            }
        }
    }
}

fn text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

/// Remembers what a model asks for.
struct Recorder {
    source: RandomSource,
    tensors: Vec<(String, Vec<usize>, Vec<f32>)>,
}

impl Source for Recorder {
    fn matrix(&mut self, name: &str, rows: usize, cols: usize) -> Result<Tensor> {
        let tensor = self.source.matrix(name, rows, cols)?;
        let mut values = vec![0.0; rows * cols];
        decode(DType::F32, tensor.bytes(), &mut values);
        self.tensors.push((name.to_owned(), vec![rows, cols], values));
        Ok(tensor)
    }
    fn vector(&mut self, name: &str, len: usize) -> Result<Vec<f32>> {
        let values = self.source.vector(name, len)?;
        self.tensors.push((name.to_owned(), vec![len], values.clone()));
        Ok(values)
    }
    fn contains(&self, _: &str) -> bool {
        false
    }
}

/// Writes what a file says of `config`.
fn describe(file: &mut GgufFile, architecture: &str, config: &Json) {
    let number = |name: &str| config[name].as_f64();
    file.set("general.architecture", Value::Text(architecture.into()));
    for (field, key) in [
        ("hidden_size", "embedding_length"),
        ("intermediate_size", "feed_forward_length"),
        ("num_hidden_layers", "block_count"),
        ("num_attention_heads", "attention.head_count"),
        ("num_key_value_heads", "attention.head_count_kv"),
        ("head_dim", "attention.key_length"),
        ("head_dim", "attention.value_length"),
        ("max_position_embeddings", "context_length"),
        ("sliding_window", "attention.sliding_window"),
        ("original_max_position_embeddings", "rope.scaling.original_context_length"),
    ] {
        if let Some(n) = number(field) {
            file.set(&format!("{architecture}.{key}"), Value::U32(n as u32));
        }
    }
    for (field, key) in [
        ("rms_norm_eps", "attention.layer_norm_rms_epsilon"),
        ("rope_theta", "rope.freq_base"),
        ("attn_logit_softcapping", "attn_logit_softcapping"),
        ("final_logit_softcapping", "final_logit_softcapping"),
    ] {
        if let Some(x) = number(field) {
            file.set(&format!("{architecture}.{key}"), Value::F32(x as f32));
        }
    }
    let rules = &config["rope_scaling"];
    if let Some(factor) = rules["factor"].as_f64() {
        file.set(
            &format!("{architecture}.rope.scaling.type"),
            Value::Text(rules["rope_type"].as_str().unwrap().into()),
        );
        file.set(&format!("{architecture}.rope.scaling.factor"), Value::F32(factor as f32));
    }
    if let Some(original) = rules["original_max_position_embeddings"].as_u64() {
        file.set(&format!("{architecture}.rope.scaling.original_context_length"), Value::U32(original as u32));
    }
    for (field, name) in [("short_factor", "rope_factors_short.weight"), ("long_factor", "rope_factors_long.weight")] {
        if let Some(list) = rules[field].as_array() {
            let values: Vec<f32> = list.iter().map(|v| v.as_f64().unwrap() as f32).collect();
            file.tensors.push(GgufTensor::f32(name, &[values.len()], &values));
        }
    }
}

/// What a file calls a tensor.
fn gguf_name(name: &str, spec: &ModelSpec) -> String {
    let (stem, kind) = name.rsplit_once('.').unwrap();
    let whole = [("model.embed_tokens", "token_embd"), ("model.norm", "output_norm"), ("lm_head", "output")];
    if let Some((_, gguf)) = whole.iter().find(|(hf, _)| *hf == stem) {
        return format!("{gguf}.{kind}");
    }
    let (layer, part) = stem.strip_prefix("model.layers.").unwrap().split_once('.').unwrap();
    let gguf = match part {
        "input_layernorm" => "attn_norm",
        "self_attn.q_proj" => "attn_q",
        "self_attn.k_proj" => "attn_k",
        "self_attn.v_proj" => "attn_v",
        "self_attn.qkv_proj" => "attn_qkv",
        "self_attn.q_norm" => "attn_q_norm",
        "self_attn.k_norm" => "attn_k_norm",
        "self_attn.o_proj" => "attn_output",
        "post_attention_layernorm" if spec.block_norms.after() => "post_attention_norm",
        "post_attention_layernorm" | "pre_feedforward_layernorm" => "ffn_norm",
        "post_feedforward_layernorm" => "post_ffw_norm",
        "mlp.gate_proj" => "ffn_gate",
        "mlp.up_proj" | "mlp.gate_up_proj" => "ffn_up",
        "mlp.down_proj" => "ffn_down",
        other => panic!("{other} has no name in GGUF files"),
    };
    format!("blk.{layer}.{gguf}.{kind}")
}

/// Rows of heads, whose halves are rotated with each other, so that neighbours are.
fn pairs(values: &[f32], heads: usize, head_dim: usize, cols: usize) -> Vec<f32> {
    let half = head_dim / 2;
    let rows = (0..heads)
        .flat_map(|head| (0..half).flat_map(move |i| [i, i + half]).map(move |within| head * head_dim + within));
    rows.flat_map(|row| values[row * cols..(row + 1) * cols].to_vec()).collect()
}
