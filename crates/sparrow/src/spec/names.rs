//! What checkpoints call the tensors of each role. Every name is written once, here.

/// Names without `.weight` and `.bias`. The parts of a layer follow [`layers`](Self::layers) and the layer's index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorNames {
    /// Token embeddings.
    pub embedding: &'static str,
    /// Learned position embeddings.
    pub positions: &'static str,
    /// What the names of all layers' tensors begin with.
    pub layers: &'static str,
    /// The norm before the head.
    pub norm: &'static str,
    /// The head, where it is not tied.
    pub head: &'static str,
    /// The norm before attention.
    pub attention_norm: &'static str,
    /// Query, key and value projections.
    pub qkv: [&'static str; 3],
    /// The three in one tensor.
    pub fused_qkv: &'static str,
    /// Norms of queries and of keys.
    pub qk_norm: [&'static str; 2],
    /// The attention's output projection.
    pub output: &'static str,
    /// The norm on attention's output.
    pub attention_post_norm: &'static str,
    /// The norm before the MLP.
    pub mlp_norm: &'static str,
    /// Gate projection.
    pub gate: &'static str,
    /// Up projection.
    pub up: &'static str,
    /// Gate and up in one tensor.
    pub fused_gate_up: &'static str,
    /// Down projection.
    pub down: &'static str,
    /// The norm on the MLP's output.
    pub mlp_post_norm: &'static str,
}

/// Llama's names, which most architectures share.
pub const LLAMA: TensorNames = TensorNames {
    embedding: "model.embed_tokens",
    positions: "model.embed_positions",
    layers: "model.layers",
    norm: "model.norm",
    head: "lm_head",
    attention_norm: "input_layernorm",
    qkv: ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    fused_qkv: "self_attn.qkv_proj",
    qk_norm: ["self_attn.q_norm", "self_attn.k_norm"],
    output: "self_attn.o_proj",
    attention_post_norm: "post_attention_layernorm",
    mlp_norm: "post_attention_layernorm",
    gate: "mlp.gate_proj",
    up: "mlp.up_proj",
    fused_gate_up: "mlp.gate_up_proj",
    down: "mlp.down_proj",
    mlp_post_norm: "post_feedforward_layernorm",
};

/// Where blocks have norms on their outputs (Gemma 2 and 3, OLMo 2): Llama's name for the norm *before the MLP* is then that
/// of the norm *after attention*.
pub const POST_NORMS: TensorNames = TensorNames { mlp_norm: "pre_feedforward_layernorm", ..LLAMA };

/// OPT's names.
pub const OPT: TensorNames = TensorNames {
    embedding: "model.decoder.embed_tokens",
    positions: "model.decoder.embed_positions",
    layers: "model.decoder.layers",
    norm: "model.decoder.final_layer_norm",
    attention_norm: "self_attn_layer_norm",
    output: "self_attn.out_proj",
    mlp_norm: "final_layer_norm",
    up: "fc1",
    down: "fc2",
    ..LLAMA
};

/// What is stored among the weights and no result depends on: constants that follow from the configuration, scales for caches that
/// are quantised otherwise, and the predictors of zeros that Bamboo and TurboSparse bring.
const BUFFERS: [&str; 14] = [
    "rotary_emb.inv_freq",
    "rotary_emb.original_inv_freq",
    "rotary_emb.cos_cached",
    "rotary_emb.sin_cached",
    "_extra_state",
    "masked_bias",
    "self_attn.bias",
    "position_ids",
    "q_scale",
    "k_scale",
    "v_scale",
    "prob_scale",
    "mlp.predictor.fc1.weight",
    "mlp.predictor.fc2.weight",
];

/// Whether `tensor` is stored but never needed.
pub fn is_buffer(tensor: &str) -> bool {
    BUFFERS.iter().filter_map(|buffer| tensor.strip_suffix(buffer)).any(|before| before.ends_with('.'))
}

impl TensorNames {
    /// The name of a layer's part.
    pub fn layer(&self, index: usize, part: &str) -> String {
        format!("{}.{index}.{part}", self.layers)
    }

    /// Whether `tensor` belongs to a layer.
    pub fn is_of_layer(&self, tensor: &str) -> bool {
        tensor.strip_prefix(self.layers).is_some_and(|rest| rest.starts_with('.'))
    }

    /// The name of the down projection that `tensor` is the weight of, if it is one as checkpoints store it.
    pub fn down_of<'a>(&self, tensor: &'a str) -> Option<&'a str> {
        let name = tensor.strip_suffix(".weight")?;
        let layer = name.strip_suffix(self.down)?;
        (layer.ends_with('.') && self.is_of_layer(layer)).then_some(name)
    }
}
