//! What an architecture is, as data: the forward pass reads a [`ModelSpec`] and has no branch on a model's name.

use sparrow_kernels::Activation;

/// Everything the forward pass needs to know about a decoder-only language model.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelSpec {
    /// The name in `config.json`'s `architectures`.
    pub architecture: String,
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
    /// The norm before attention, before the MLP and before the head.
    pub norm: Norm,
    /// A second norm on each block's output before the residual add (Gemma 2).
    pub post_norms: bool,
    /// A norm over each head of the queries and of the keys before RoPE (Qwen 3, Gemma 3).
    pub qk_norm: bool,
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
    Rope(Rope),
    /// A learned vector per position, added to the embedding; row `position + offset` of the table (OPT: offset 2).
    Learned {
        /// Rows of the table before position 0.
        offset: usize,
    },
}

/// Rotary position embedding: frequencies as a function of the dimension, and how they are stretched for long contexts.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// Base of the geometric series of wavelengths.
    pub theta: f64,
    /// Leading dimensions of a head that are rotated; even.
    pub rotary_dim: usize,
    /// Long-context rule.
    pub scaling: RopeScaling,
}

/// `rope_scaling` of `config.json`, with the meaning transformers gives it.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// Frequencies as trained.
    None,
    /// Every frequency divided by `factor` (position interpolation, arXiv 2306.15595).
    Linear {
        /// The stretch.
        factor: f64,
    },
    /// The base grows with the sequence once it passes the trained length (dynamic NTK).
    Dynamic {
        /// The stretch at `factor × max_position_embeddings`.
        factor: f64,
    },
    /// Llama 3.1: low frequencies divided by `factor`, high ones kept, a smooth band between.
    Llama3 {
        /// Divisor of the low frequencies.
        factor: f64,
        /// Wavelengths above `original / low_freq_factor` are low.
        low_freq_factor: f64,
        /// Wavelengths below `original / high_freq_factor` are high.
        high_freq_factor: f64,
        /// Positions before the stretch.
        original_max_position_embeddings: usize,
    },
}

impl ModelSpec {
    /// Tokens a sequence may have: the trained positions, stretched where the scaling rule stretches them.
    pub fn context_length(&self) -> usize {
        match &self.positions {
            Positions::Rope(Rope {
                scaling: RopeScaling::Linear { factor } | RopeScaling::Dynamic { factor }, ..
            }) => (self.max_position_embeddings as f64 * factor) as usize,
            _ => self.max_position_embeddings,
        }
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
            + bias(self.qk_norm, 2 * self.head_dim);
        let mlp = (ups + 1) * h * i + bias(self.biases.mlp, ups * i + h);
        let norms = if self.post_norms { 4 } else { 2 } * norm;
        let positions = match self.positions {
            Positions::Rope(_) => 0,
            Positions::Learned { offset } => (self.max_position_embeddings + offset) * h,
        };
        let heads = if self.tied { 1 } else { 2 };
        (self.num_layers * (attention + mlp + norms) + heads * self.vocab_size * h + norm + positions) as u64
    }
}

impl Rope {
    /// Radians per position of each rotated pair, for a sequence of `seq_len` tokens in a model trained for `trained`
    /// positions; writes `rotary_dim / 2` values in the f32 precision that transformers uses.
    ///
    /// # Panics
    /// If `out` has another length.
    pub fn frequencies(&self, seq_len: usize, trained: usize, out: &mut [f32]) {
        assert_eq!(out.len(), self.rotary_dim / 2, "frequencies: out must have rotary_dim / 2 values");
        let dim = self.rotary_dim as f64;
        let mut theta = self.theta;
        if let RopeScaling::Dynamic { factor } = self.scaling
            && seq_len > trained
        {
            let stretch = factor * seq_len as f64 / trained as f64 - (factor - 1.0);
            theta *= stretch.powf(dim / (dim - 2.0));
        }
        for (i, f) in out.iter_mut().enumerate() {
            let frequency = theta.powf(-2.0 * i as f64 / dim);
            *f = match self.scaling {
                RopeScaling::None | RopeScaling::Dynamic { .. } => frequency,
                RopeScaling::Linear { factor } => frequency / factor,
                RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
                    let original = original_max_position_embeddings as f64;
                    let wavelength = 2.0 * std::f64::consts::PI / frequency;
                    if wavelength > original / low_freq_factor {
                        frequency / factor
                    } else if wavelength < original / high_freq_factor {
                        frequency
                    } else {
                        let smooth = (original / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor);
                        (1.0 - smooth) * frequency / factor + smooth * frequency
                    }
                }
            } as f32;
        }
    }

    /// Whether frequencies change with the sequence's length.
    pub fn is_dynamic(&self) -> bool {
        matches!(self.scaling, RopeScaling::Dynamic { .. })
    }
}
