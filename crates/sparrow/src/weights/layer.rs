//! The weights of one decoder layer.

use sparrow_kernels::{Compute, DType, Stored};

use super::key_sizes::KeySizes;
use super::{INPUT_MAJOR, NEURON_MAJOR, Source};
use crate::error::{Error, Result};
use crate::spec::{ModelSpec, NormKind, QkNorm};
use crate::tensor::Weight;

/// The weights of one decoder layer.
#[derive(Debug)]
pub struct LayerWeights {
    /// Before attention, where there is one.
    pub attention_norm: Option<NormWeights>,
    /// `[heads · head_dim, hidden]`.
    pub q: Linear,
    /// `[kv_heads · head_dim, hidden]`.
    pub k: Linear,
    pub(super) key_sizes: KeySizes,
    /// `[kv_heads · head_dim, hidden]`.
    pub v: Linear,
    /// Where queries and keys are normed: `[head_dim]` each, or as wide as their projection.
    pub qk_norm: Option<(NormWeights, NormWeights)>,
    /// `[hidden, heads · head_dim]`.
    pub o: Linear,
    /// On the attention block's output, where there is one.
    pub attention_post_norm: Option<NormWeights>,
    /// Before the MLP, where there is one.
    pub mlp_norm: Option<NormWeights>,
    /// The MLP.
    pub mlp: MlpWeights,
    /// On the MLP block's output, where there is one.
    pub mlp_post_norm: Option<NormWeights>,
}

/// The weights of one MLP.
#[derive(Debug)]
pub struct MlpWeights {
    /// `[intermediate, hidden]`, for a gated MLP.
    pub gate: Option<Linear>,
    /// `[intermediate, hidden]`.
    pub up: Linear,
    /// `[hidden, intermediate]`, or neuron-major, `[intermediate, hidden]`.
    pub down: Linear,
}

/// Weight and bias of a linear layer.
#[derive(Debug)]
pub struct Linear {
    /// `[out, in]` as checkpoints store it, or `[in, out]` if input-major.
    pub weight: Weight,
    /// `[out]`.
    pub bias: Option<Vec<f32>>,
    /// A row belongs to an input, so that the rows of inactive inputs need not be read. An input-major down projection is
    /// called neuron-major: its inputs are the neurons.
    pub input_major: bool,
}

/// Weight and bias of a linear layer, or of a part of one, as operations compute with them.
#[derive(Debug, Clone, Copy)]
pub struct LinearView<'a> {
    /// As [`Linear::weight`].
    pub weight: Stored<'a>,
    /// As [`Linear::bias`].
    pub bias: Option<&'a [f32]>,
    /// As [`Linear::input_major`].
    pub input_major: bool,
}

/// Weight and bias of a norm.
#[derive(Debug)]
pub struct NormWeights {
    /// Scale.
    pub weight: Vec<f32>,
    /// Shift, for a layer norm.
    pub bias: Option<Vec<f32>>,
}

impl LayerWeights {
    /// Takes the tensors of one layer out of `source`.
    ///
    /// # Errors
    /// As [`Weights::load`].
    pub fn load(spec: &ModelSpec, source: &mut dyn Source, index: usize) -> Result<Self> {
        load_layer(spec, source, index)
    }

    /// Lets the system take the pages of its mapped matrices out of this process's resident memory.
    pub fn release(&self) {
        self.projections().for_each(|linear| linear.weight.release());
    }

    pub(super) fn projections_mut(&mut self) -> impl Iterator<Item = &mut Linear> {
        let LayerWeights { q, k, v, o, mlp: MlpWeights { gate, up, down }, .. } = self;
        [q, k, v, o, up, down].into_iter().chain(gate)
    }

    pub(super) fn projections(&self) -> impl Iterator<Item = &Linear> {
        let LayerWeights { q, k, v, o, mlp: MlpWeights { gate, up, down }, .. } = self;
        [q, k, v, o, up, down].into_iter().chain(gate)
    }

    /// Bytes of the matrices of attention.
    pub fn attention_bytes(&self) -> u64 {
        [&self.q, &self.k, &self.v, &self.o].map(|w| w.weight.byte_len()).iter().sum()
    }
}

impl MlpWeights {
    /// The layer whose values decide which neurons are active: the gate, or the up projection of an ungated MLP.
    pub fn deciding(&self) -> &Linear {
        self.gate.as_ref().unwrap_or(&self.up)
    }

    /// What the down projection is quantised to where `dtype` is asked for. A neuron's row has one scale for all outputs in int8, of
    /// which a few of the residual stream are far larger than all others: they get a scale for every 32.
    pub(super) fn down_quantized_to(&self, dtype: DType) -> DType {
        match self.down.input_major && dtype == DType::I8 {
            true => DType::Q8_0,
            false => dtype,
        }
    }

    /// Bytes of all its matrices.
    pub fn bytes(&self) -> u64 {
        [&self.up, &self.down].into_iter().chain(&self.gate).map(|w| w.weight.byte_len()).sum()
    }

    /// Bytes of one neuron: its rows of gate, up and down; an average, where rows are stored as bitmaps.
    pub fn neuron_bytes(&self) -> u64 {
        self.bytes() / self.up.outputs().max(1) as u64
    }

    /// Bytes of one row of the gate, or of `up` without one; an average, where rows are stored as bitmaps.
    pub fn gate_row_bytes(&self) -> u64 {
        let weight = &self.deciding().weight;
        weight.byte_len() / weight.rows().max(1) as u64
    }
}

fn load_layer(spec: &ModelSpec, source: &mut dyn Source, index: usize) -> Result<LayerWeights> {
    let (hidden, q_size, kv_size) = (spec.hidden_size, spec.q_size(), spec.kv_size());
    let (names, norms) = (&spec.names, spec.block_norms);
    let name = |part: &str| names.layer(index, part);
    let [q, k, v] = if spec.fused.qkv {
        let all = linear(source, &name(names.fused_qkv), q_size + 2 * kv_size, hidden, spec.biases.qkv)?;
        [all.rows(0, q_size), all.rows(q_size, kv_size), all.rows(q_size + kv_size, kv_size)]
    } else {
        let [q, k, v] = names.qkv.map(name);
        [
            linear(source, &q, q_size, hidden, spec.biases.qkv)?,
            linear(source, &k, kv_size, hidden, spec.biases.qkv)?,
            linear(source, &v, kv_size, hidden, spec.biases.qkv)?,
        ]
    };
    let [q_norm, k_norm] = names.qk_norm.map(name);
    let mut qk_norm = |q_len, k_len| -> Result<_> {
        Ok(Some((NormWeights::load(spec, source, &q_norm, q_len)?, NormWeights::load(spec, source, &k_norm, k_len)?)))
    };
    let qk_norm = match spec.qk_norm {
        QkNorm::None => None,
        QkNorm::Head => qk_norm(spec.head_dim, spec.head_dim)?,
        QkNorm::Projection => qk_norm(q_size, kv_size)?,
    };
    let mut block_norm = |there: bool, part: &str| match there {
        true => NormWeights::load(spec, source, &name(part), hidden).map(Some),
        false => Ok(None),
    };
    Ok(LayerWeights {
        attention_norm: block_norm(norms.before(), names.attention_norm)?,
        attention_post_norm: block_norm(norms.after(), names.attention_post_norm)?,
        mlp_norm: block_norm(norms.before(), names.mlp_norm)?,
        mlp_post_norm: block_norm(norms.after(), names.mlp_post_norm)?,
        q,
        k,
        key_sizes: KeySizes::default(),
        v,
        qk_norm,
        o: linear(source, &name(names.output), hidden, q_size, spec.biases.output)?,
        mlp: load_mlp(spec, source, index)?,
    })
}

fn load_mlp(spec: &ModelSpec, source: &mut dyn Source, index: usize) -> Result<MlpWeights> {
    let (hidden, intermediate, bias) = (spec.hidden_size, spec.intermediate_size, spec.biases.mlp);
    let names = &spec.names;
    let mut part = |part: &str, rows| linear(source, &names.layer(index, part), rows, hidden, bias);
    let (gate, up) = if spec.fused.gate_up {
        let both = part(names.fused_gate_up, 2 * intermediate)?;
        (Some(both.rows(0, intermediate)), both.rows(intermediate, intermediate))
    } else {
        let gate = if spec.gated { Some(part(names.gate, intermediate)?) } else { None };
        (gate, part(names.up, intermediate)?)
    };
    let down = names.layer(index, names.down);
    let transposed = format!("{down}.{NEURON_MAJOR}");
    let down = match source.contains(&transposed) {
        true => {
            let weight = source.weight(&transposed, intermediate, hidden)?;
            Linear { weight, bias: load_bias(source, &down, hidden, bias)?, input_major: true }
        }
        false => linear(source, &down, hidden, intermediate, bias)?,
    };
    Ok(MlpWeights { gate, up, down })
}

fn linear(source: &mut dyn Source, name: &str, rows: usize, cols: usize, bias: bool) -> Result<Linear> {
    let transposed = format!("{name}.{INPUT_MAJOR}.weight");
    let input_major = source.contains(&transposed);
    let weight = match input_major {
        true => source.weight(&transposed, cols, rows)?,
        false => source.weight(&format!("{name}.weight"), rows, cols)?,
    };
    Ok(Linear { weight, bias: load_bias(source, name, rows, bias)?, input_major })
}

fn load_bias(source: &mut dyn Source, name: &str, len: usize, there: bool) -> Result<Option<Vec<f32>>> {
    there.then(|| source.vector(&format!("{name}.bias"), len)).transpose()
}

impl NormWeights {
    /// Takes the tensors of the norm `name` out of `source`.
    ///
    /// # Errors
    /// The source's.
    pub(super) fn load(spec: &ModelSpec, source: &mut dyn Source, name: &str, len: usize) -> Result<NormWeights> {
        let weight = source.vector(&format!("{name}.weight"), len)?;
        let bias = match spec.norm.kind {
            NormKind::Rms { .. } => None,
            NormKind::Layer => Some(source.vector(&format!("{name}.bias"), len)?),
        };
        Ok(NormWeights { weight, bias })
    }
}

impl Linear {
    fn rows(&self, start: usize, len: usize) -> Linear {
        let bias = self.bias.as_ref().map(|b| b[start..start + len].to_vec());
        Linear { weight: self.weight.row_range(start..start + len), bias, input_major: false }
    }

    pub(super) fn make_input_major(&mut self, compute: &Compute) -> Result<()> {
        if self.input_major {
            return Ok(());
        }
        let stored = self.weight.clone();
        if stored.dtype().is_quantized() && matches!(stored, Weight::Bitmap(_)) {
            let message = format!(
                "needs a row of each neuron, but the weights are bitmaps of {} with a row of each output: select (or \
                 `sparrow sparsify`) first, then pack",
                stored.dtype()
            );
            return Err(Error::option("selector", message));
        }
        self.weight = stored.transposed(compute)?;
        self.input_major = true;
        stored.release();
        Ok(())
    }

    /// What operations compute with.
    pub fn view(&self) -> LinearView<'_> {
        LinearView { weight: self.weight.stored(), bias: self.bias.as_deref(), input_major: self.input_major }
    }

    /// Outputs, whatever the layout.
    pub fn outputs(&self) -> usize {
        if self.input_major { self.weight.cols() } else { self.weight.rows() }
    }

    /// Inputs, whatever the layout.
    pub fn inputs(&self) -> usize {
        if self.input_major { self.weight.rows() } else { self.weight.cols() }
    }
}
