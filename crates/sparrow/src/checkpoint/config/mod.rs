//! `config.json` and `generation_config.json` of a Hugging Face directory → [`ModelSpec`] and [`GenerationConfig`].

mod family;
mod opt;
mod quantization;
mod rope;
mod sampling;

use std::path::Path;

use serde_json::Value;
use sparrow_kernels::Activation;

use super::absent;
use super::fields::{Fields, read_json};
use crate::error::{Error, Result};
use crate::spec::{Biases, ModelSpec, Norm, NormKind};
use crate::tensor::damage;
pub use quantization::{PackedLayers, describe_bitmaps, describe_input_major, describe_packed};
pub use sampling::{SuggestedSampling, read_suggested_sampling};

use family::{BiasRule, FAMILIES, Family, SoftCap, WindowRule};

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
    let spec = match architecture(&config)? {
        Some(family) => rotary_spec(&config, family)?,
        None => opt::spec(&config)?,
    };
    quantization::check(&config)?;
    let widest = [spec.q_size(), spec.kv_size()].into_iter().max().expect("two widths");
    if widest > MAX_SIZE {
        let message = format!("times num_attention_heads is {widest}, more than {MAX_SIZE}");
        return Err(config.error("head_dim", &message));
    }
    if config.bool("use_bidirectional_attention")? == Some(true) {
        return Err(config.error("use_bidirectional_attention", "is true: only causal models are supported"));
    }
    Ok(spec)
}

/// The family that the configuration names; none for OPT, which shares no fields with the others.
fn architecture(config: &Fields) -> Result<Option<&'static Family>> {
    static ALL: [Family; FAMILIES.len()] = FAMILIES;
    let named = config.strings("architectures")?.unwrap_or_default();
    let model_type = config.str("model_type")?;
    let rotary = ALL.iter().map(|family| (family.architecture, family.model_type, Some(family)));
    let known: Vec<_> = rotary.chain([(opt::ARCHITECTURE, opt::MODEL_TYPE, None)]).collect();
    // Of several names, and where none is known (a base model's, another task's), the type decides, as in transformers.
    let is_named = |(architecture, ..): &&(&str, _, _)| named.contains(architecture);
    let is_of_type = |(_, of_type, _): &&(_, &str, _)| Some(*of_type) == model_type;
    let decided = known.iter().filter(is_of_type).find(is_named);
    if let Some(&(.., family)) = decided.or(known.iter().find(is_named)).or(known.iter().find(is_of_type)) {
        return Ok(family);
    }
    let problem = match (named.is_empty(), model_type) {
        (false, _) => format!("names {}, which is not supported", named.join(", ")),
        (true, Some(model_type)) => format!("names nothing and model_type is {model_type}"),
        (true, None) => "names nothing, and there is no model_type".into(),
    };
    let known: Vec<_> = known.iter().map(|(architecture, ..)| *architecture).collect();
    Err(config.error("architectures", &format!("{problem}; supported: {}", known.join(", "))))
}

/// The specification of a model with rotary embeddings and RMS norms.
fn rotary_spec(config: &Fields, family: &Family) -> Result<ModelSpec> {
    let size = |name: &str| config.usize(name, 1..=MAX_SIZE);
    let required = |name: &str| config.required(name, size(name)?);
    let Attention { hidden_size, num_layers, num_heads, num_kv_heads, head_dim } =
        Attention::read(config, family.head_dim)?;
    if !head_dim.is_multiple_of(2) {
        return Err(config.error("head_dim", &format!("must be even for rotary embeddings, found {head_dim}")));
    }
    let max_position_embeddings = size("max_position_embeddings")?.unwrap_or(family.max_position_embeddings);
    let (activation_field, default_activation) = family.activation;
    let activation = match activation(config, activation_field, default_activation)? {
        Activation::Gelu if family.gelu_is_tanh => Activation::GeluTanh,
        Activation::Relu if family.activates_up => Activation::DoubleRelu,
        _ if family.activates_up => {
            let message = format!("must be relu, which {} applies to gate and up", family.architecture);
            return Err(config.error(activation_field, &message));
        }
        other => other,
    };
    let query_scale = match family.scaled_queries {
        true => config.positive("query_pre_attn_scalar")?.unwrap_or(256.0),
        false => head_dim as f64,
    };
    let rope = rope::Context { config, family, head_dim, max_position_embeddings };
    Ok(ModelSpec {
        architecture: family.architecture.into(),
        names: family.names.clone(),
        vocab_size: required("vocab_size")?,
        hidden_size,
        intermediate_size: required("intermediate_size")?,
        num_layers,
        num_heads,
        num_kv_heads,
        head_dim,
        max_position_embeddings,
        norm: Norm {
            kind: NormKind::Rms { offset: family.norm_offset },
            eps: config.positive("rms_norm_eps")?.unwrap_or(family.norm_eps) as f32,
        },
        block_norms: family.block_norms,
        qk_norm: family.qk_norm,
        activation,
        gated: true,
        biases: biases(config, &family.biases)?,
        fused: family.fused,
        positions: rope.positions()?,
        attention_scale: query_scale.powf(-0.5) as f32,
        attention_soft_cap: soft_cap(config, "attn_logit_softcapping", &family.attention_soft_cap)?,
        logits_soft_cap: soft_cap(config, "final_logit_softcapping", &family.logits_soft_cap)?,
        windows: windows(config, &family.windows, num_layers)?,
        embedding_scale: if family.scaled_embeddings { (hidden_size as f32).sqrt() } else { 1.0 },
        tied: config.bool("tie_word_embeddings")?.unwrap_or(family.tied),
    })
}

/// The sizes that all architectures give in the same fields.
struct Attention {
    hidden_size: usize,
    num_layers: usize,
    num_heads: usize,
    num_kv_heads: usize,
    head_dim: usize,
}

impl Attention {
    /// `head_dim` is what a head's width is by default, if not the hidden size divided by the heads.
    fn read(config: &Fields, head_dim: Option<usize>) -> Result<Self> {
        let size = |name: &str| config.usize(name, 1..=MAX_SIZE);
        let required = |name: &str| config.required(name, size(name)?);
        let hidden_size = required("hidden_size")?;
        let num_heads = required("num_attention_heads")?;
        let num_layers = config.required("num_hidden_layers", config.usize("num_hidden_layers", 1..=4096)?)?;
        let num_kv_heads = size("num_key_value_heads")?.unwrap_or(num_heads);
        if !num_heads.is_multiple_of(num_kv_heads) {
            let message = format!("must divide num_attention_heads ({num_heads}), found {num_kv_heads}");
            return Err(config.error("num_key_value_heads", &message));
        }
        let head_dim = match config.usize("head_dim", 1..=1 << 16)?.or(head_dim) {
            Some(head_dim) => head_dim,
            None if hidden_size.is_multiple_of(num_heads) => hidden_size / num_heads,
            None => {
                let message = format!("({hidden_size}) must be a multiple of num_attention_heads ({num_heads})");
                return Err(config.error("hidden_size", &message));
            }
        };
        Ok(Attention { hidden_size, num_layers, num_heads, num_kv_heads, head_dim })
    }
}

fn biases(config: &Fields, rule: &BiasRule) -> Result<Biases> {
    let attention = config.bool("attention_bias")?.unwrap_or(false);
    let mlp = config.bool("mlp_bias")?.unwrap_or(false);
    Ok(match rule {
        BiasRule::None => Biases::default(),
        BiasRule::Qkv => Biases { qkv: true, ..Biases::default() },
        BiasRule::Attention => Biases { qkv: attention, output: attention, mlp: false },
        BiasRule::AttentionAndMlp => Biases { qkv: attention, output: attention, mlp },
    })
}

fn soft_cap(config: &Fields, name: &str, rule: &SoftCap) -> Result<Option<f32>> {
    Ok(match rule {
        SoftCap::None => None,
        SoftCap::Field(default) if !config.has(name) => default.map(|cap| cap as f32),
        SoftCap::Field(_) => config.positive(name)?.map(|cap| cap as f32),
    })
}

/// Per layer, how many positions a token sees.
fn windows(config: &Fields, rule: &WindowRule, num_layers: usize) -> Result<Vec<Option<usize>>> {
    const FIELD: &str = "sliding_window";
    let window = |default| match config.has(FIELD) {
        true => config.usize(FIELD, 1..=MAX_SIZE),
        false => Ok(default),
    };
    let count = |name, default| Ok::<_, Error>(config.usize(name, 0..=MAX_SIZE)?.unwrap_or(default));
    let (window, windowed): (_, Vec<bool>) = match *rule {
        WindowRule::None => return Ok(vec![None; num_layers]),
        WindowRule::Every(default) => return Ok(vec![window(default)?; num_layers]),
        WindowRule::Upper => {
            let window = if config.bool("use_sliding_window")? == Some(true) { window(Some(4096))? } else { None };
            let first = count("max_window_layers", 28)?;
            (window, (0..num_layers).map(|layer| window.is_some() && layer >= first).collect())
        }
        WindowRule::AllButEvery(default) => {
            let pattern = count("sliding_window_pattern", default)?.max(1);
            (window(Some(4096))?, (1..=num_layers).map(|layer| layer % pattern != 0).collect())
        }
    };
    let windowed = layer_types(config, num_layers)?.unwrap_or(windowed);
    if windowed.contains(&true) && window.is_none() {
        return Err(config.error(FIELD, "is missing or switched off, but layer_types has sliding_attention"));
    }
    Ok(windowed.into_iter().map(|windowed| window.filter(|_| windowed)).collect())
}

/// `layer_types`: whether each layer has a window.
fn layer_types(config: &Fields, num_layers: usize) -> Result<Option<Vec<bool>>> {
    const FIELD: &str = "layer_types";
    let Some(types) = config.strings(FIELD)? else { return Ok(None) };
    if types.len() != num_layers {
        let message = format!("has {} entries for num_hidden_layers = {num_layers}", types.len());
        return Err(config.error(FIELD, &message));
    }
    let windowed = |(layer, &kind): (usize, &&str)| match kind {
        "full_attention" => Ok(false),
        "sliding_attention" => Ok(true),
        other => {
            let message = format!("entry {layer} is {other:?}; supported: full_attention, sliding_attention");
            Err(config.error(FIELD, &message))
        }
    };
    types.iter().enumerate().map(windowed).collect::<Result<_>>().map(Some)
}

fn activation(config: &Fields, field: &str, default: &str) -> Result<Activation> {
    Ok(match config.str(field)?.unwrap_or(default) {
        "silu" | "swish" => Activation::Silu,
        "relu" => Activation::Relu,
        "relu2" => Activation::ReluSquared,
        "fatrelu" => {
            const FIELD: &str = "hidden_act_param";
            let threshold = config.number(FIELD)?.unwrap_or(0.0) as f32;
            if !(threshold >= 0.0 && threshold.is_finite()) {
                return Err(config.error(FIELD, &format!("must be finite and 0 or above, found {threshold}")));
            }
            Activation::FatRelu(threshold)
        }
        "gelu" => Activation::Gelu,
        "gelu_new" | "gelu_fast" | "gelu_pytorch_tanh" => Activation::GeluTanh,
        "quick_gelu" => Activation::GeluSigmoid,
        other => {
            let message = format!(
                "is {other:?}; supported: silu, relu, relu2, fatrelu, gelu, gelu_new, gelu_fast, gelu_pytorch_tanh, quick_gelu"
            );
            return Err(config.error(field, &message));
        }
    })
}

impl GenerationConfig {
    /// Adds the ids that `json`, the value of `generation_config.json` or `config.json`, says end generation; `path` is used in
    /// messages only.
    ///
    /// # Errors
    /// If they are no ids.
    pub fn add(&mut self, path: &Path, json: &Value) -> Result<()> {
        self.eos_token_ids.extend(Fields::new(path, json)?.ids("eos_token_id")?);
        self.eos_token_ids.sort_unstable();
        self.eos_token_ids.dedup();
        Ok(())
    }
}

/// Error for a directory that is not a model directory.
pub fn require_dir(dir: &Path) -> Result<()> {
    const WANTED: &str = "pass a Hugging Face model directory (config.json, *.safetensors, tokenizer.json)";
    let config = dir.join("config.json");
    if config.is_file() {
        return Ok(());
    }
    // Links that lead nowhere have an error of their own.
    for path in [dir, &config] {
        if path.is_symlink() {
            damage::metadata(path)?;
        }
    }
    let message = match dir.is_dir() {
        true => format!("has no config.json: {}", absent::mend(dir, WANTED)),
        false => format!("is not a directory: {WANTED}"),
    };
    Err(Error::config(dir, message))
}
