//! What an architecture is, as data: the forward pass reads a [`ModelSpec`] and has no branch on a model's name.

pub mod names;
mod rope;

use sparrow_kernels::Activation;

use names::TensorNames;
pub use rope::{Rope, RopeScaling};

/// Everything the forward pass needs to know about a decoder-only language model.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelSpec {
    /// The name in `config.json`'s `architectures`.
    pub architecture: String,
    /// What its checkpoints call their tensors.
    pub names: TensorNames,
    /// Tokens in the vocabulary: rows of the embedding and of the head.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Neurons of each MLP.
    pub intermediate_size: usize,
    /// Decoder layers.
    pub num_layers: usize,
    /// Query heads.
    pub num_heads: usize,
    /// Key and value heads; divides `num_heads` (grouped-query attention, arXiv 2305.13245).
    pub num_kv_heads: usize,
    /// Width of one head; need not be `hidden_size / num_heads`.
    pub head_dim: usize,
    /// Positions the model was trained for.
    pub max_position_embeddings: usize,
    /// The formula of every norm; there is always one before the head.
    pub norm: Norm,
    /// Which ends of an attention or MLP block have a norm.
    pub block_norms: BlockNorms,
    /// Norms of queries and keys before RoPE.
    pub qk_norm: QkNorm,
    /// The MLP's nonlinearity.
    pub activation: Activation,
    /// Gated MLP, `down(act(gate·x) ⊙ up·x)`; otherwise `down(act(up·x))`.
    pub gated: bool,
    /// Which linear layers have a bias.
    pub biases: Biases,
    /// Projections that the checkpoint stores stacked in one tensor.
    pub fused: Fused,
    /// How positions enter.
    pub positions: Positions,
    /// Attention scores are multiplied by this before the softmax.
    pub attention_scale: f32,
    /// `c·tanh(score / c)` on attention scores (Gemma 2).
    pub attention_soft_cap: Option<f32>,
    /// `c·tanh(logit / c)` on the logits (Gemma 2).
    pub logits_soft_cap: Option<f32>,
    /// Per layer: how many positions back a token sees, itself included; `None` sees all.
    pub windows: Vec<Option<usize>>,
    /// Embeddings are multiplied by this (Gemma: √hidden).
    pub embedding_scale: f32,
    /// The head is the embedding matrix.
    pub tied: bool,
}

/// A normalisation over the hidden size.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Norm {
    /// Which formula.
    pub kind: NormKind,
    /// Added to the variance or mean square.
    pub eps: f32,
}

/// Formula of a [`Norm`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum NormKind {
    /// `x / rms(x) · (offset + weight)` (arXiv 1910.07467); Gemma's offset is 1, all others' 0.
    Rms {
        /// Added to the stored weight.
        offset: f32,
    },
    /// `(x − mean) / std · weight + bias` (arXiv 1607.06450).
    Layer,
}

/// Which ends of an attention or MLP block have a norm; the residual stream is added after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BlockNorms {
    /// On what enters: most models.
    Before,
    /// On what enters and what leaves (Gemma 2 and 3).
    BeforeAndAfter,
    /// On what leaves (OLMo 2).
    After,
}

impl BlockNorms {
    /// Whether what enters a block is normed.
    pub fn before(self) -> bool {
        self != BlockNorms::After
    }

    /// Whether what leaves a block is normed.
    pub fn after(self) -> bool {
        self != BlockNorms::Before
    }
}

/// Norms of queries and keys before RoPE.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QkNorm {
    /// None.
    None,
    /// Over each head by itself (Qwen 3, Gemma 3).
    Head,
    /// Over all heads of a token together (OLMo 2).
    Projection,
}

/// Which linear layers have a bias.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Biases {
    /// Query, key and value projections.
    pub qkv: bool,
    /// The attention's output projection.
    pub output: bool,
    /// Every projection of the MLP.
    pub mlp: bool,
}

/// Projections that the checkpoint stores stacked in one tensor (Phi-3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Fused {
    /// `qkv_proj`: queries, keys, values.
    pub qkv: bool,
    /// `gate_up_proj`: gate, up.
    pub gate_up: bool,
}

/// How token positions enter the model.
#[derive(Debug, Clone, PartialEq)]
pub enum Positions {
    /// Rotary embeddings (arXiv 2104.09864) on queries and keys.
    Rope {
        /// Of every layer, unless layers with a window have their own.
        full: Rope,
        /// Of the layers with a window (Gemma 3).
        windowed: Option<Rope>,
    },
    /// A learned vector per position, added to the embedding; row `position + offset` of the table (OPT: offset 2).
    Learned {
        /// Rows of the table before position 0.
        offset: usize,
    },
}

impl ModelSpec {
    /// Tokens a sequence may have: the trained positions, stretched where the scaling rule stretches them.
    pub fn context_length(&self) -> usize {
        let trained = self.max_position_embeddings;
        match &self.positions {
            Positions::Rope { full, windowed: None } => match full.scaling {
                RopeScaling::Linear { factor } | RopeScaling::Dynamic { factor } => (trained as f64 * factor) as usize,
                RopeScaling::Yarn { factor, original_max_position_embeddings, .. } => {
                    trained.max((original_max_position_embeddings as f64 * factor) as usize)
                }
                _ => trained,
            },
            // The windowed layers' own rotation is not stretched: what is trained already is the whole context.
            _ => trained,
        }
    }

    /// The rotary embeddings in use: at most two, the one of layers with a window last.
    pub fn ropes(&self) -> impl Iterator<Item = &Rope> {
        let ropes = match &self.positions {
            Positions::Rope { full, windowed } => [Some(full), windowed.as_ref()],
            Positions::Learned { .. } => [None, None],
        };
        ropes.into_iter().flatten()
    }

    /// Which of [`ropes`](Self::ropes) `layer` has.
    pub fn rope_of(&self, layer: usize) -> Option<usize> {
        match &self.positions {
            Positions::Rope { windowed, .. } => Some(usize::from(windowed.is_some() && self.windows[layer].is_some())),
            Positions::Learned { .. } => None,
        }
    }

    /// Whether a sequence of `now` tokens rotates all its keys in another way than one of `before` does: cached ones are then
    /// of no use.
    pub fn rotates_anew(&self, before: usize, now: usize) -> bool {
        self.ropes().any(|rope| match rope.scaling {
            RopeScaling::LongRope { original_max_position_embeddings: original, .. } => {
                (before > original) != (now > original)
            }
            _ => false,
        })
    }

    /// What a checkpoint calls the head's weights: those of the embedding, if tied.
    pub fn head(&self) -> &'static str {
        if self.tied { self.names.embedding } else { self.names.head }
    }

    /// Whether `tensor` belongs to a layer or is the weights of the head: the matrices that tokens are multiplied with.
    pub fn is_of_layer_or_head(&self, tensor: &str) -> bool {
        self.names.is_of_layer(tensor) || tensor.strip_suffix(".weight") == Some(self.head())
    }

    /// Width of all query heads together.
    pub fn q_size(&self) -> usize {
        self.num_heads * self.head_dim
    }

    /// Width of all key heads together (values have the same).
    pub fn kv_size(&self) -> usize {
        self.num_kv_heads * self.head_dim
    }

    /// Number of weights, biases and norms included; a tied head counts once.
    pub fn parameters(&self) -> u64 {
        let (h, i) = (self.hidden_size, self.intermediate_size);
        let norm = match self.norm.kind {
            NormKind::Rms { .. } => h,
            NormKind::Layer => 2 * h,
        };
        let bias = |on: bool, n: usize| if on { n } else { 0 };
        let ups = if self.gated { 2 } else { 1 };
        let attention = (self.q_size() + 2 * self.kv_size()) * h
            + bias(self.biases.qkv, self.q_size() + 2 * self.kv_size())
            + self.q_size() * h
            + bias(self.biases.output, h)
            + match self.qk_norm {
                QkNorm::None => 0,
                QkNorm::Head => 2 * self.head_dim,
                QkNorm::Projection => self.q_size() + self.kv_size(),
            };
        let mlp = (ups + 1) * h * i + bias(self.biases.mlp, ups * i + h);
        let norms = if self.block_norms == BlockNorms::BeforeAndAfter { 4 } else { 2 } * norm;
        let positions = match self.positions {
            Positions::Rope { .. } => 0,
            Positions::Learned { offset } => (self.max_position_embeddings + offset) * h,
        };
        let heads = if self.tied { 1 } else { 2 };
        (self.num_layers * (attention + mlp + norms) + heads * self.vocab_size * h + norm + positions) as u64
    }
}
