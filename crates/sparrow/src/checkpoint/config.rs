//! `config.json` and `generation_config.json` of a Hugging Face directory → [`ModelSpec`] and [`GenerationConfig`].

use std::path::Path;

use serde_json::Value;
use sparrow_kernels::Activation;

use super::fields::{Fields, read_json};
use crate::error::{Error, Result};
use crate::model::spec::{Biases, Fused, ModelSpec, Norm, NormKind, Positions, Rope, RopeScaling};

/// Largest value of any size field: well above every published model, well below an overflow of a product of two.
const MAX_SIZE: usize = 1 << 24;

/// Ids that begin and end a text, from `generation_config.json` and `config.json` together.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GenerationConfig {
    /// Every id that ends generation.
    pub eos_token_ids: Vec<u32>,
}

/// Reads `config.json` at `path`.
///
/// # Errors
/// If the file cannot be read, is not JSON, names an architecture that is not supported, or has a field that is
/// missing or out of range; the message names it.
pub fn read_config(path: &Path) -> Result<ModelSpec> {
    parse_config(path, &read_json(path)?)
}

/// [`read_config`] of an already parsed value; `path` is used in messages only.
///
/// # Errors
/// As [`read_config`].
pub fn parse_config(path: &Path, json: &Value) -> Result<ModelSpec> {
    let config = Fields::new(path, json)?;
    let architecture = architecture(&config, json)?;
    let size = |name: &'static str| config.usize(name, 1..=MAX_SIZE);
    let required = |name: &'static str| config.required(name, size(name)?);

    let hidden_size = required("hidden_size")?;
    let num_heads = required("num_attention_heads")?;
    let num_layers = config.required("num_hidden_layers", config.usize("num_hidden_layers", 1..=4096)?)?;
    let num_kv_heads = size("num_key_value_heads")?.unwrap_or(num_heads);
    if !num_heads.is_multiple_of(num_kv_heads) {
        let message = format!("must divide num_attention_heads ({num_heads}), found {num_kv_heads}");
        return Err(config.error("num_key_value_heads", &message));
    }
    let head_dim = match config.usize("head_dim", 1..=1 << 16)? {
        Some(head_dim) => head_dim,
        None if hidden_size.is_multiple_of(num_heads) => hidden_size / num_heads,
        None => {
            let message = format!("({hidden_size}) must be a multiple of num_attention_heads ({num_heads})");
            return Err(config.error("hidden_size", &message));
        }
    };
    if !head_dim.is_multiple_of(2) {
        return Err(config.error("head_dim", &format!("must be even for rotary embeddings, found {head_dim}")));
    }
    let attention_bias = config.bool("attention_bias")?.unwrap_or(false);
    let spec = ModelSpec {
        architecture,
        vocab_size: required("vocab_size")?,
        hidden_size,
        intermediate_size: required("intermediate_size")?,
        num_layers,
        num_heads,
        num_kv_heads,
        head_dim,
        max_position_embeddings: size("max_position_embeddings")?.unwrap_or(2048),
        norm: Norm {
            kind: NormKind::Rms { offset: 0.0 },
            eps: config.positive("rms_norm_eps")?.unwrap_or(1e-6) as f32,
        },
        post_norms: false,
        qk_norm: false,
        activation: activation(&config)?,
        gated: true,
        biases: Biases { qkv: attention_bias, output: attention_bias, mlp: config.bool("mlp_bias")?.unwrap_or(false) },
        fused: Fused::default(),
        positions: Positions::Rope(rope(&config, head_dim)?),
        attention_scale: (head_dim as f32).powf(-0.5),
        attention_soft_cap: None,
        logits_soft_cap: None,
        windows: vec![None; num_layers],
        embedding_scale: 1.0,
        tied: config.bool("tie_word_embeddings")?.unwrap_or(false),
    };
    let widest = spec.q_size().max(spec.kv_size()).max(hidden_size).max(spec.intermediate_size).max(spec.vocab_size);
    if widest > MAX_SIZE {
        let message = format!("times num_attention_heads is {}, more than {MAX_SIZE}", spec.q_size());
        return Err(config.error("head_dim", &message));
    }
    Ok(spec)
}

/// Reads the ids that end generation from the `generation_config.json` (if it is there) and `config.json` of `dir`.
///
/// # Errors
/// If a file that is there cannot be read or parsed.
pub fn read_generation_config(dir: &Path) -> Result<GenerationConfig> {
    let mut eos_token_ids = Vec::new();
    for name in ["generation_config.json", "config.json"] {
        let path = dir.join(name);
        if name == "config.json" || path.exists() {
            eos_token_ids.extend(Fields::new(&path, &read_json(&path)?)?.ids("eos_token_id")?);
        }
    }
    eos_token_ids.sort_unstable();
    eos_token_ids.dedup();
    Ok(GenerationConfig { eos_token_ids })
}

fn architecture(config: &Fields, json: &Value) -> Result<String> {
    const SUPPORTED: [&str; 1] = ["LlamaForCausalLM"];
    let named = match json.get("architectures") {
        None | Some(Value::Null) => None,
        Some(Value::Array(list)) if list.len() == 1 && list[0].is_string() => list[0].as_str(),
        Some(other) => {
            return Err(config.error("architectures", &format!("must be a list of one name, found {other}")));
        }
    };
    let name = match (named, config.str("model_type")?) {
        (Some(name), _) => name,
        (None, Some("llama")) => "LlamaForCausalLM",
        (None, found) => {
            let found = found.unwrap_or("neither field");
            return Err(config.error("architectures", &format!("is missing and model_type is {found}")));
        }
    };
    if SUPPORTED.contains(&name) {
        Ok(name.to_owned())
    } else {
        let message = format!("names {name}, which is not supported; supported: {}", SUPPORTED.join(", "));
        Err(config.error("architectures", &message))
    }
}

fn activation(config: &Fields) -> Result<Activation> {
    Ok(match config.str("hidden_act")?.unwrap_or("silu") {
        "silu" | "swish" => Activation::Silu,
        "relu" => Activation::Relu,
        "relu2" => Activation::ReluSquared,
        "gelu" => Activation::Gelu,
        "gelu_new" | "gelu_fast" | "gelu_pytorch_tanh" => Activation::GeluTanh,
        "quick_gelu" => Activation::GeluSigmoid,
        other => {
            let message = format!(
                "is {other:?}; supported: silu, relu, relu2, gelu, gelu_new, gelu_fast, gelu_pytorch_tanh, quick_gelu"
            );
            return Err(config.error("hidden_act", &message));
        }
    })
}

/// Both spellings: `rope_theta` + `rope_scaling`, and transformers 5's `rope_parameters`, which holds both.
fn rope(config: &Fields, head_dim: usize) -> Result<Rope> {
    let parameters = config.object("rope_parameters")?;
    let theta = match &parameters {
        Some(parameters) => parameters.positive("rope_theta")?,
        None => None,
    };
    let theta = theta.or(config.positive("rope_theta")?).unwrap_or(10_000.0);
    let scaling = match parameters.or(config.object("rope_scaling")?) {
        None => RopeScaling::None,
        Some(rules) => rope_scaling(config, &rules)?,
    };
    Ok(Rope { theta, rotary_dim: head_dim, scaling })
}

fn rope_scaling(config: &Fields, rules: &Fields) -> Result<RopeScaling> {
    let kind = match rules.str("rope_type")? {
        Some(kind) => Some(kind),
        None => rules.str("type")?,
    };
    let number = |name: &str| rules.required(name, rules.positive(name)?);
    Ok(match kind.unwrap_or("default") {
        "default" => RopeScaling::None,
        "linear" => RopeScaling::Linear { factor: stretch(rules)? },
        "dynamic" => RopeScaling::Dynamic { factor: stretch(rules)? },
        "llama3" => {
            let original = rules.usize("original_max_position_embeddings", 1..=MAX_SIZE)?;
            let original = original.or(config.usize("original_max_position_embeddings", 1..=MAX_SIZE)?);
            let (low, high) = (number("low_freq_factor")?, number("high_freq_factor")?);
            if low >= high {
                return Err(rules.error("high_freq_factor", &format!("({high}) must be above low_freq_factor ({low})")));
            }
            RopeScaling::Llama3 {
                factor: stretch(rules)?,
                low_freq_factor: low,
                high_freq_factor: high,
                original_max_position_embeddings: rules.required("original_max_position_embeddings", original)?,
            }
        }
        other => {
            let message = format!("is {other:?}; supported: default, linear, dynamic, llama3");
            return Err(rules.error("rope_type", &message));
        }
    })
}

fn stretch(rules: &Fields) -> Result<f64> {
    let factor = rules.required("factor", rules.positive("factor")?)?;
    if (1.0..=1024.0).contains(&factor) {
        Ok(factor)
    } else {
        Err(rules.error("factor", &format!("must be in 1..=1024, found {factor}")))
    }
}

/// Error for a directory that is not a model directory.
pub(crate) fn require_dir(dir: &Path) -> Result<()> {
    if dir.join("config.json").is_file() {
        return Ok(());
    }
    let message = if dir.is_dir() {
        "has no config.json: pass a Hugging Face model directory (config.json, *.safetensors, tokenizer.json)"
    } else {
        "is not a directory: pass a Hugging Face model directory (config.json, *.safetensors, tokenizer.json)"
    };
    Err(Error::config(dir, message))
}
