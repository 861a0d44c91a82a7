//! The names of tensors: those of GGUF files, and those of Hugging Face checkpoints.

use crate::spec::ModelSpec;

/// Where a tensor belongs.
pub(super) enum Place {
    /// Under this name.
    Tensor(String),
    /// It says what the configuration says.
    Nowhere,
}

/// Where the tensor `name` of a file belongs in a model of `spec`; `None` if it is not part of one.
pub(super) fn place(name: &str, spec: &ModelSpec) -> Option<Place> {
    if matches!(name, "rope_freqs.weight" | "rope_factors_long.weight" | "rope_factors_short.weight") {
        return Some(Place::Nowhere);
    }
    let names = &spec.names;
    let (stem, kind) = name.rsplit_once('.').filter(|(_, kind)| matches!(*kind, "weight" | "bias"))?;
    let whole = |part: &str| Some(Place::Tensor(format!("{part}.{kind}")));
    match stem {
        "token_embd" => return whole(names.embedding),
        "output_norm" => return whole(names.norm),
        "output" => return whole(names.head),
        _ => {}
    }
    let (layer, part) = stem.strip_prefix("blk.")?.split_once('.')?;
    let layer: usize = layer.parse().ok().filter(|&layer| layer < spec.num_layers)?;
    let after = spec.block_norms.after();
    let part = match part {
        "attn_norm" => names.attention_norm,
        "attn_q" => names.qkv[0],
        "attn_k" => names.qkv[1],
        "attn_v" => names.qkv[2],
        "attn_qkv" => names.fused_qkv,
        "attn_q_norm" => names.qk_norm[0],
        "attn_k_norm" => names.qk_norm[1],
        "attn_output" => names.output,
        "post_attention_norm" if after => names.attention_post_norm,
        "ffn_norm" => names.mlp_norm,
        "ffn_gate" => names.gate,
        "ffn_up" if spec.fused.gate_up => names.fused_gate_up,
        "ffn_up" => names.up,
        "ffn_down" => names.down,
        "post_ffw_norm" if after => names.mlp_post_norm,
        "attn_rot_embd" => return Some(Place::Nowhere),
        _ => return None,
    };
    whole(&names.layer(layer, part))
}
