//! OPT: layer norms, learned positions, and fields of its own names.

use super::{Attention, MAX_SIZE, activation};
use crate::checkpoint::fields::Fields;
use crate::error::Result;
use crate::spec::names;
use crate::spec::{Biases, BlockNorms, Fused, ModelSpec, Norm, NormKind, Positions, QkNorm};

pub(super) const ARCHITECTURE: &str = "OPTForCausalLM";
pub(super) const MODEL_TYPE: &str = "opt";

/// The specification of an OPT model.
///
/// # Errors
/// If a field is missing or out of range, or the model is of the kind of OPT 350M, which norms after its blocks.
pub(super) fn spec(config: &Fields) -> Result<ModelSpec> {
    let size = |name: &str| config.usize(name, 1..=MAX_SIZE);
    let required = |name: &str| config.required(name, size(name)?);
    let attention = Attention::read(config, None)?;
    let Attention { hidden_size, num_heads, head_dim, .. } = attention;
    for (field, wanted) in
        [("do_layer_norm_before", true), ("layer_norm_elementwise_affine", true), ("_remove_final_layer_norm", false)]
    {
        if config.bool(field)?.is_some_and(|found| found != wanted) {
            let message = format!("must be {wanted}: other forms of OPT (such as OPT 350M's) are not supported");
            return Err(config.error(field, &message));
        }
    }
    if let Some(width) = size("word_embed_proj_dim")?.filter(|&width| width != hidden_size) {
        let message =
            format!("must equal hidden_size ({hidden_size}), found {width}: projected embeddings are not supported");
        return Err(config.error("word_embed_proj_dim", &message));
    }
    let num_layers = attention.num_layers;
    let biases = config.bool("enable_bias")?.unwrap_or(true);
    Ok(ModelSpec {
        architecture: ARCHITECTURE.into(),
        names: names::OPT,
        vocab_size: required("vocab_size")?,
        hidden_size,
        intermediate_size: required("ffn_dim")?,
        num_layers,
        num_heads,
        num_kv_heads: num_heads,
        head_dim,
        max_position_embeddings: size("max_position_embeddings")?.unwrap_or(2048),
        norm: Norm { kind: NormKind::Layer, eps: 1e-5 },
        block_norms: BlockNorms::Before,
        qk_norm: QkNorm::None,
        activation: activation(config, "activation_function", "relu")?,
        gated: false,
        biases: Biases { qkv: biases, output: biases, mlp: biases },
        fused: Fused::default(),
        positions: Positions::Learned { offset: 2 },
        attention_scale: (head_dim as f32).powf(-0.5),
        attention_soft_cap: None,
        logits_soft_cap: None,
        windows: vec![None; num_layers],
        embedding_scale: 1.0,
        tied: config.bool("tie_word_embeddings")?.unwrap_or(true),
    })
}
