//! What distinguishes the architectures, as data: the traits `config.json` does not spell out, and its defaults.

use crate::spec::names::{self, TensorNames};
use crate::spec::{BlockNorms, Fused, QkNorm};

/// One architecture with rotary embeddings and RMS norms.
pub(super) struct Family {
    /// The name in `architectures`.
    pub architecture: &'static str,
    /// The name in `model_type`.
    pub model_type: &'static str,
    /// What checkpoints call their tensors.
    pub names: TensorNames,
    /// Which ends of a block have a norm.
    pub block_norms: BlockNorms,
    /// Norms of queries and keys.
    pub qk_norm: QkNorm,
    /// Added to the weights of norms.
    pub norm_offset: f32,
    /// Default of `rms_norm_eps`.
    pub norm_eps: f64,
    /// The field that names the activation, and its default.
    pub activation: (&'static str, &'static str),
    /// Plain `gelu` is a slip of older configurations: the model was trained with the tanh form.
    pub gelu_is_tanh: bool,
    /// The activation, which then must be `relu`, is that of up too.
    pub activates_up: bool,
    /// Which linear layers have a bias.
    pub biases: BiasRule,
    /// Projections stored in one tensor.
    pub fused: Fused,
    /// Default of `head_dim`; `None` is hidden size ÷ heads.
    pub head_dim: Option<usize>,
    /// Default of `max_position_embeddings`.
    pub max_position_embeddings: usize,
    /// Which layers have a window.
    pub windows: WindowRule,
    /// Default of `rope_theta`.
    pub theta: f64,
    /// Layers with a window have a rotary embedding of their own, with this theta by default.
    pub windowed_theta: Option<f64>,
    /// `partial_rotary_factor` is read: part of each head is rotated.
    pub partial_rotary: bool,
    /// Embeddings are multiplied by √hidden.
    pub scaled_embeddings: bool,
    /// Attention scores are scaled by `query_pre_attn_scalar` (default 256) instead of the head's width.
    pub scaled_queries: bool,
    /// `attn_logit_softcapping`.
    pub attention_soft_cap: SoftCap,
    /// `final_logit_softcapping`.
    pub logits_soft_cap: SoftCap,
    /// Default of `tie_word_embeddings`.
    pub tied: bool,
}

/// Which linear layers have a bias.
pub(super) enum BiasRule {
    /// None, whatever the configuration says.
    None,
    /// Queries, keys and values, always.
    Qkv,
    /// All of attention if `attention_bias`.
    Attention,
    /// All of attention if `attention_bias`, all of the MLP if `mlp_bias`.
    AttentionAndMlp,
}

/// Which layers have a window, of `sliding_window` positions.
pub(super) enum WindowRule {
    /// None, whatever the configuration says.
    None,
    /// Every layer, if there is a window; with its default.
    Every(Option<usize>),
    /// Those of `layer_types`, or from `max_window_layers` on; none unless `use_sliding_window`.
    Upper,
    /// Those of `layer_types`, or all but every n-th: `sliding_window_pattern`, and its default.
    AllButEvery(usize),
}

/// Whether a cap is read.
pub(super) enum SoftCap {
    /// Not part of the architecture.
    None,
    /// Read, with this default where the field is missing; null means none.
    Field(Option<f64>),
}

const LLAMA: Family = Family {
    architecture: "LlamaForCausalLM",
    model_type: "llama",
    names: names::LLAMA,
    block_norms: BlockNorms::Before,
    qk_norm: QkNorm::None,
    norm_offset: 0.0,
    norm_eps: 1e-6,
    activation: ("hidden_act", "silu"),
    gelu_is_tanh: false,
    activates_up: false,
    biases: BiasRule::AttentionAndMlp,
    fused: Fused { qkv: false, gate_up: false },
    head_dim: None,
    max_position_embeddings: 2048,
    windows: WindowRule::None,
    theta: 1e4,
    windowed_theta: None,
    partial_rotary: false,
    scaled_embeddings: false,
    scaled_queries: false,
    attention_soft_cap: SoftCap::None,
    logits_soft_cap: SoftCap::None,
    tied: false,
};

const MISTRAL: Family = Family {
    architecture: "MistralForCausalLM",
    model_type: "mistral",
    biases: BiasRule::None,
    max_position_embeddings: 131_072,
    windows: WindowRule::Every(Some(4096)),
    ..LLAMA
};

const QWEN2: Family = Family {
    architecture: "Qwen2ForCausalLM",
    model_type: "qwen2",
    biases: BiasRule::Qkv,
    max_position_embeddings: 32_768,
    windows: WindowRule::Upper,
    ..LLAMA
};

const GEMMA: Family = Family {
    architecture: "GemmaForCausalLM",
    model_type: "gemma",
    norm_offset: 1.0,
    activation: ("hidden_act", "gelu_pytorch_tanh"),
    gelu_is_tanh: true,
    biases: BiasRule::Attention,
    head_dim: Some(256),
    max_position_embeddings: 8192,
    scaled_embeddings: true,
    tied: true,
    ..LLAMA
};

const GEMMA2: Family = Family {
    architecture: "Gemma2ForCausalLM",
    model_type: "gemma2",
    names: names::POST_NORMS,
    block_norms: BlockNorms::BeforeAndAfter,
    activation: ("hidden_activation", "gelu_pytorch_tanh"),
    gelu_is_tanh: false,
    windows: WindowRule::AllButEvery(2),
    scaled_queries: true,
    attention_soft_cap: SoftCap::Field(Some(50.0)),
    logits_soft_cap: SoftCap::Field(Some(30.0)),
    ..GEMMA
};

/// Every architecture of this kind that is supported.
pub(super) const FAMILIES: [Family; 11] = [
    LLAMA,
    // ProSparse: Llama with a fatrelu.
    Family { architecture: "SparseLlamaForCausalLM", model_type: "sparsellama", ..LLAMA },
    MISTRAL,
    // Bamboo and TurboSparse.
    Family { architecture: "BambooForCausalLM", model_type: "bamboo", activates_up: true, ..MISTRAL },
    QWEN2,
    Family {
        architecture: "Qwen3ForCausalLM",
        model_type: "qwen3",
        qk_norm: QkNorm::Head,
        biases: BiasRule::Attention,
        head_dim: Some(128),
        ..QWEN2
    },
    Family {
        architecture: "Phi3ForCausalLM",
        model_type: "phi3",
        norm_eps: 1e-5,
        biases: BiasRule::None,
        fused: Fused { qkv: true, gate_up: true },
        max_position_embeddings: 4096,
        windows: WindowRule::Every(None),
        partial_rotary: true,
        ..LLAMA
    },
    GEMMA,
    GEMMA2,
    Family {
        architecture: "Gemma3ForCausalLM",
        model_type: "gemma3_text",
        qk_norm: QkNorm::Head,
        max_position_embeddings: 131_072,
        windows: WindowRule::AllButEvery(6),
        theta: 1e6,
        windowed_theta: Some(1e4),
        attention_soft_cap: SoftCap::None,
        logits_soft_cap: SoftCap::Field(None),
        ..GEMMA2
    },
    Family {
        architecture: "Olmo2ForCausalLM",
        model_type: "olmo2",
        names: names::POST_NORMS,
        block_norms: BlockNorms::After,
        qk_norm: QkNorm::Projection,
        norm_eps: 1e-5,
        biases: BiasRule::Attention,
        ..LLAMA
    },
];
