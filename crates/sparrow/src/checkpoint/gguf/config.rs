//! `config.json` of a GGUF file: its metadata under the names of Hugging Face.

use serde_json::{Map, Value, json};

use super::file::Tensors;
use super::keys::{Keys, MAX_SIZE};
use super::rope;
use super::value::Metadata;
use crate::error::Result;

/// What an architecture is called, and what its files leave unsaid.
pub(super) struct Architecture {
    /// In `general.architecture`, and before the keys.
    pub name: &'static str,
    /// In `architectures` of `config.json`.
    pub class: &'static str,
    /// In `model_type` of `config.json`.
    pub model_type: &'static str,
    /// Files have the rows of queries and keys in the order of rotated pairs.
    pub interleaves_rotary: bool,
    /// Some of each head is rotated, as `rope.dimension_count` says; that is the width of heads otherwise.
    pub partial_rotary: bool,
    /// The field of the activation, and what it is.
    activation: (&'static str, &'static str),
    /// Attention scores are scaled by a field of their own, which files do not have.
    scaled_queries: bool,
}

const LLAMA: Architecture = Architecture {
    name: "llama",
    class: "LlamaForCausalLM",
    model_type: "llama",
    interleaves_rotary: true,
    partial_rotary: false,
    activation: ("hidden_act", "silu"),
    scaled_queries: false,
};

const QWEN2: Architecture =
    Architecture { name: "qwen2", class: "Qwen2ForCausalLM", model_type: "qwen2", interleaves_rotary: false, ..LLAMA };

const GEMMA: Architecture = Architecture {
    name: "gemma",
    class: "GemmaForCausalLM",
    model_type: "gemma",
    activation: ("hidden_act", "gelu_pytorch_tanh"),
    ..QWEN2
};

const GEMMA2: Architecture = Architecture {
    name: "gemma2",
    class: "Gemma2ForCausalLM",
    model_type: "gemma2",
    activation: ("hidden_activation", "gelu_pytorch_tanh"),
    scaled_queries: true,
    ..GEMMA
};

const ARCHITECTURES: [Architecture; 8] = [
    LLAMA,
    QWEN2,
    Architecture { name: "qwen3", class: "Qwen3ForCausalLM", model_type: "qwen3", ..QWEN2 },
    GEMMA,
    GEMMA2,
    Architecture { name: "gemma3", class: "Gemma3ForCausalLM", model_type: "gemma3_text", ..GEMMA2 },
    Architecture { name: "phi3", class: "Phi3ForCausalLM", model_type: "phi3", partial_rotary: true, ..QWEN2 },
    Architecture { name: "olmo2", class: "Olmo2ForCausalLM", model_type: "olmo2", ..QWEN2 },
];

/// The architecture of a file.
pub(super) fn architecture(metadata: &Metadata) -> Result<&'static Architecture> {
    static ALL: [Architecture; ARCHITECTURES.len()] = ARCHITECTURES;
    const KEY: &str = "general.architecture";
    let name = metadata.required(KEY, metadata.str(KEY)?)?;
    ALL.iter().find(|architecture| architecture.name == name).ok_or_else(|| {
        let known: Vec<_> = ALL.iter().map(|architecture| architecture.name).collect();
        metadata.error(KEY, format!("is {name:?}, which is not supported; supported: {}", known.join(", ")))
    })
}

/// `config.json` of the file.
///
/// # Errors
/// If a key is missing or out of range, or the architecture is not supported.
pub(super) fn config(metadata: &Metadata, tensors: &Tensors) -> Result<Value> {
    let architecture = architecture(metadata)?;
    let keys = Keys::new(metadata, architecture.name);
    let has = |name: &str| tensors.contains_key(name);
    let embedding = tensors.get("token_embd.weight").map(|tensor| tensor.shape[0]);
    let vocab_size =
        embedding.ok_or_else(|| metadata.error("token_embd.weight", "is missing: the file holds no whole model"))?;
    let (hidden_size, heads) = (keys.required("embedding_length")?, keys.required("attention.head_count")?);
    let (layers, context) = (keys.required("block_count")?, keys.required("context_length")?);
    let (activation_field, activation) = architecture.activation;
    let mut config = json!({
        "architectures": [architecture.class],
        "model_type": architecture.model_type,
        "vocab_size": vocab_size,
        "hidden_size": hidden_size,
        "intermediate_size": keys.required("feed_forward_length")?,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": keys.uniform("attention.head_count_kv")?.unwrap_or(heads),
        "max_position_embeddings": context,
        "rms_norm_eps": metadata.required(
            &keys.name("attention.layer_norm_rms_epsilon"), keys.positive("attention.layer_norm_rms_epsilon")?)?,
        "tie_word_embeddings": !has("output.weight"),
        activation_field: activation,
        "attention_bias": has("blk.0.attn_q.bias"),
        "mlp_bias": has("blk.0.ffn_down.bias"),
    });
    let fields = config.as_object_mut().expect("it is made as one");
    let rotated = keys.usize("rope.dimension_count")?;
    let key_length = keys.usize("attention.key_length")?;
    let head_dim = key_length.or(rotated.filter(|_| !architecture.partial_rotary));
    if keys
        .usize("attention.value_length")?
        .is_some_and(|length| Some(length) != head_dim && length * heads != hidden_size)
    {
        return Err(metadata
            .error(&keys.name("attention.value_length"), "differs from attention.key_length, which is not supported"));
    }
    let width = head_dim.unwrap_or(hidden_size / heads);
    optional(fields, "head_dim", head_dim);
    if architecture.partial_rotary && rotated.is_some_and(|rotated| rotated < width) {
        fields.insert("partial_rotary_factor".into(), (rotated.unwrap_or(width) as f64 / width as f64).into());
    }
    if architecture.scaled_queries {
        // The largest of each family scales by the width that heads would have if they shared the hidden size.
        let largest = matches!((architecture.name, layers), ("gemma2", 46) | ("gemma3", 62));
        fields.insert("query_pre_attn_scalar".into(), if largest { hidden_size / heads } else { width }.into());
    }
    optional(fields, "attn_logit_softcapping", keys.positive("attn_logit_softcapping")?);
    optional(fields, "final_logit_softcapping", keys.positive("final_logit_softcapping")?);
    optional(fields, "sliding_window", keys.usize("attention.sliding_window")?);
    rope::describe(tensors, &keys, width, context, fields)?;
    for (field, key) in [("bos_token_id", "bos"), ("eos_token_id", "eos"), ("pad_token_id", "padding")] {
        optional(fields, field, metadata.usize(&format!("tokenizer.ggml.{key}_token_id"), 0..=MAX_SIZE)?);
    }
    fields.insert("torch_dtype".into(), "bfloat16".into());
    Ok(config)
}

fn optional(fields: &mut Map<String, Value>, name: &str, value: Option<impl Into<Value>>) {
    if let Some(value) = value {
        fields.insert(name.to_owned(), value.into());
    }
}
