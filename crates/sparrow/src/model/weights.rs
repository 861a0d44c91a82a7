//! The weights of a model, by role.

use sparrow_kernels::{Compute, DType};

use super::format::WeightsFormat;
use super::spec::{ModelSpec, NormKind, Positions, QkNorm};
use crate::checkpoint::{Checkpoint, Tensor, Weight};
use crate::error::{Error, Result};

/// Suffix of a down projection that is stored transposed, `[intermediate, hidden]`: row `i` belongs to neuron `i`.
pub const NEURON_MAJOR: &str = "weight_neuron_major";

/// Where weights come from: a checkpoint, or a generator.
pub trait Source {
    /// The matrix `name`, `[rows, cols]`.
    ///
    /// # Errors
    /// If it cannot be had in that shape.
    fn matrix(&mut self, name: &str, rows: usize, cols: usize) -> Result<Tensor>;
    /// The weights `name`, `[rows, cols]`, however they are stored.
    ///
    /// # Errors
    /// As [`matrix`](Self::matrix).
    fn weight(&mut self, name: &str, rows: usize, cols: usize) -> Result<Weight> {
        Ok(self.matrix(name, rows, cols)?.into())
    }
    /// The vector `name`, of `len` values.
    ///
    /// # Errors
    /// If it cannot be had in that length.
    fn vector(&mut self, name: &str, len: usize) -> Result<Vec<f32>>;
    /// Whether `name` is there.
    fn contains(&self, name: &str) -> bool;
}

impl Source for Checkpoint {
    fn matrix(&mut self, name: &str, rows: usize, cols: usize) -> Result<Tensor> {
        Checkpoint::matrix(self, name, rows, cols)
    }
    fn weight(&mut self, name: &str, rows: usize, cols: usize) -> Result<Weight> {
        Checkpoint::weight(self, name, rows, cols)
    }
    fn vector(&mut self, name: &str, len: usize) -> Result<Vec<f32>> {
        Checkpoint::vector(self, name, len)
    }
    fn contains(&self, name: &str) -> bool {
        Checkpoint::contains(self, name)
    }
}

/// All weights of a model.
#[derive(Debug)]
pub struct Weights {
    /// `[vocab, hidden]`.
    pub embedding: Weight,
    /// `[positions, hidden]`, where positions are learned.
    pub positions: Option<Weight>,
    /// One per decoder layer.
    pub layers: Vec<LayerWeights>,
    /// Before the head.
    pub norm: NormWeights,
    /// `[vocab, hidden]`; the embedding itself if tied.
    pub head: Weight,
}

/// The weights of one decoder layer.
#[derive(Debug)]
pub struct LayerWeights {
    /// Before attention, where there is one.
    pub attention_norm: Option<NormWeights>,
    /// `[heads · head_dim, hidden]`.
    pub q: Linear,
    /// `[kv_heads · head_dim, hidden]`.
    pub k: Linear,
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

/// Weight and bias of a norm.
#[derive(Debug)]
pub struct NormWeights {
    /// Scale.
    pub weight: Vec<f32>,
    /// Shift, for a layer norm.
    pub bias: Option<Vec<f32>>,
}

impl Weights {
    /// Takes every tensor that `spec` calls for out of `source`.
    ///
    /// # Errors
    /// The source's: a tensor that is missing or has another shape or dtype.
    pub fn load(spec: &ModelSpec, source: &mut dyn Source) -> Result<Self> {
        let (hidden, names) = (spec.hidden_size, &spec.names);
        let embedding = source.weight(&format!("{}.weight", names.embedding), spec.vocab_size, hidden)?;
        let positions = match spec.positions {
            Positions::Rope { .. } => None,
            Positions::Learned { offset } => {
                let name = format!("{}.weight", names.positions);
                Some(source.weight(&name, spec.max_position_embeddings + offset, hidden)?)
            }
        };
        let layers = (0..spec.num_layers).map(|i| LayerWeights::load(spec, source, i)).collect::<Result<_>>()?;
        let head = match spec.tied {
            true => embedding.clone(),
            false => source.weight(&format!("{}.weight", spec.head()), spec.vocab_size, hidden)?,
        };
        let norm = norm(spec, source, names.norm, hidden)?;
        Ok(Weights { embedding, positions, layers, norm, head })
    }

    /// The type of the layers' matrices; the head of a quantised model may have another.
    pub fn dtype(&self) -> DType {
        self.layers[0].q.weight.dtype()
    }

    /// Turns every down projection neuron-major in memory, if it is not yet; the mapped originals are released.
    ///
    /// # Errors
    /// If memory runs out, or one is already quantised: its rows cannot be taken apart any more.
    pub fn make_neuron_major(&mut self, compute: &Compute) -> Result<()> {
        self.layers.iter_mut().try_for_each(|layer| layer.mlp.down.make_input_major(compute))
    }

    /// Turns every projection of the layers input-major in memory, as [`make_neuron_major`](Self::make_neuron_major).
    ///
    /// # Errors
    /// As there.
    pub fn make_input_major(&mut self, compute: &Compute) -> Result<()> {
        self.layers.iter_mut().flat_map(LayerWeights::projections_mut).try_for_each(|w| w.make_input_major(compute))
    }

    /// Reads the mapped matrices into memory, those of MLPs only with `mlps`.
    ///
    /// # Errors
    /// If a file cannot be read or has become shorter, or memory runs out.
    pub fn read_into_memory(&mut self, mlps: bool) -> Result<()> {
        let tied = self.is_tied();
        let read = |weight: &mut Weight| {
            *weight = weight.to_memory()?;
            Ok(())
        };
        for layer in &mut self.layers {
            let LayerWeights { q, k, v, o, mlp, .. } = layer;
            [q, k, v, o].into_iter().try_for_each(|linear| read(&mut linear.weight))?;
            if mlps {
                mlp.gate.iter_mut().chain([&mut mlp.up]).try_for_each(|linear| read(&mut linear.weight))?;
                read(&mut mlp.down.weight)?;
            }
        }
        self.positions.iter_mut().try_for_each(read)?;
        read(&mut self.embedding)?;
        if tied {
            self.head = self.embedding.clone();
        }
        read(&mut self.head)
    }

    /// Reads the matrices that [`deciding`](crate::sparsity::Selector::gate) on neurons needs for every token into memory:
    /// gates, or the up projections of ungated MLPs.
    ///
    /// # Errors
    /// As [`read_into_memory`](Self::read_into_memory).
    pub(crate) fn read_gates_into_memory(&mut self) -> Result<()> {
        self.layers.iter_mut().try_for_each(|layer| {
            let deciding = layer.mlp.gate.as_mut().unwrap_or(&mut layer.mlp.up);
            deciding.weight = deciding.weight.to_memory()?;
            Ok(())
        })
    }

    /// Takes the pages of the MLPs' files out of this process's resident memory and out of the page cache.
    pub(crate) fn evict(&self) {
        let mlps = self.layers.iter().map(|layer| &layer.mlp);
        for linear in mlps.flat_map(|mlp| mlp.gate.iter().chain([&mlp.up, &mlp.down])) {
            linear.weight.evict();
        }
    }

    /// Whether every down projection has a row per neuron.
    pub fn is_neuron_major(&self) -> bool {
        self.layers.iter().all(|layer| layer.mlp.down.input_major)
    }

    /// Quantises every matrix that tokens are multiplied with and that is not quantised yet, in memory; the mapped originals
    /// are released. The head, and with it a tied embedding, becomes int8 also where the layers become int4: its errors go
    /// straight into the logits, and it is a small part of the bytes. `progress(done, total)` counts bytes of the originals.
    ///
    /// # Errors
    /// If `dtype` is not a quantised type, a matrix is quantised to another, or memory runs out.
    pub fn quantize(&mut self, dtype: DType, compute: &Compute, mut progress: impl FnMut(u64, u64)) -> Result<()> {
        let other = |stored: DType| !dtype.is_quantized() || stored.is_quantized() && stored != dtype;
        if let Some(stored) = self
            .layers
            .iter_mut()
            .flat_map(LayerWeights::projections_mut)
            .map(|w| w.weight.dtype())
            .find(|&stored| other(stored))
        {
            let message = format!("the weights are {stored}: they can be quantised to int8 or int4, not to {dtype}");
            return Err(Error::option("dtype", message));
        }
        let tied = self.is_tied();
        let (total, mut done) = (self.bytes_outside_mlp() + self.mlp_bytes(), 0);
        let mut replace = |weight: &mut Weight, dtype| {
            if !weight.dtype().is_quantized() {
                let stored = std::mem::replace(weight, weight.quantized(dtype, compute)?);
                stored.release();
                done += stored.byte_len();
                progress(done, total);
            }
            Ok(())
        };
        for linear in self.layers.iter_mut().flat_map(LayerWeights::projections_mut) {
            replace(&mut linear.weight, dtype)?;
        }
        replace(&mut self.head, DType::I8)?;
        if tied {
            self.embedding = self.head.clone();
        }
        Ok(())
    }

    /// Stores every matrix of the layers and the head as `rules` ask, in memory where that is another way than now; the mapped
    /// originals are released. `progress(done, total)` counts matrices.
    ///
    /// # Errors
    /// If memory runs out.
    pub fn set_format(
        &mut self,
        spec: &ModelSpec,
        rules: &WeightsFormat,
        compute: &Compute,
        mut progress: impl FnMut(u64, u64),
    ) -> Result<()> {
        let tied = self.is_tied();
        let names: Vec<String> = self.named(spec).map(|(name, _)| name).collect();
        let weights = self.layers.iter_mut().flat_map(LayerWeights::projections_mut).map(|linear| &mut linear.weight);
        for (done, (name, weight)) in names.iter().zip(weights.chain([&mut self.head])).enumerate() {
            progress(done as u64, names.len() as u64);
            if let Some(changed) = rules.of(name).apply(weight, compute)? {
                std::mem::replace(weight, changed).release();
            }
        }
        if tied {
            self.embedding = self.head.clone();
        }
        Ok(())
    }

    /// What tokens are multiplied with, and what a checkpoint calls it: the matrices of the layers, then the head.
    pub fn named<'a>(&'a self, spec: &'a ModelSpec) -> impl Iterator<Item = (String, &'a Weight)> {
        let names = &spec.names;
        let [q, k, v] = if spec.fused.qkv { [names.fused_qkv; 3] } else { names.qkv };
        let [gate, up] = if spec.fused.gate_up { [names.fused_gate_up; 2] } else { [names.gate, names.up] };
        // In the order of `projections`.
        let parts = [q, k, v, names.output, up, names.down, gate];
        let layers = self.layers.iter().enumerate().flat_map(move |(i, layer)| {
            let named =
                move |(part, linear): (&str, &'a Linear)| (format!("{}.weight", names.layer(i, part)), &linear.weight);
            parts.into_iter().zip(layer.projections()).map(named)
        });
        layers.chain([(format!("{}.weight", spec.head()), &self.head)])
    }

    /// Whether the head is the embedding.
    pub fn is_tied(&self) -> bool {
        self.head.shares_bytes(&self.embedding)
    }

    /// Bytes that a token reads whatever the sparsity of the MLPs: attention and head.
    pub fn bytes_outside_mlp(&self) -> u64 {
        self.layers.iter().map(LayerWeights::attention_bytes).sum::<u64>() + self.head.byte_len()
    }

    /// Bytes of all MLP matrices together.
    pub fn mlp_bytes(&self) -> u64 {
        self.layers.iter().map(|l| l.mlp.bytes()).sum()
    }

    /// Bytes of all matrices, a tied head counted once.
    pub fn bytes(&self) -> u64 {
        let embedding = if self.is_tied() { 0 } else { self.embedding.byte_len() };
        self.bytes_outside_mlp() + self.mlp_bytes() + embedding
    }
}

impl LayerWeights {
    /// Takes the tensors of one layer out of `source`.
    ///
    /// # Errors
    /// As [`Weights::load`].
    pub(crate) fn load(spec: &ModelSpec, source: &mut dyn Source, index: usize) -> Result<Self> {
        layer(spec, source, index)
    }

    /// Lets the system take the pages of its mapped matrices out of this process's resident memory.
    pub(crate) fn release(&self) {
        self.projections().for_each(|linear| linear.weight.release());
    }

    fn projections_mut(&mut self) -> impl Iterator<Item = &mut Linear> {
        let LayerWeights { q, k, v, o, mlp: MlpWeights { gate, up, down }, .. } = self;
        [q, k, v, o, up, down].into_iter().chain(gate)
    }

    fn projections(&self) -> impl Iterator<Item = &Linear> {
        let LayerWeights { q, k, v, o, mlp: MlpWeights { gate, up, down }, .. } = self;
        [q, k, v, o, up, down].into_iter().chain(gate)
    }

    /// Bytes of the matrices of attention.
    pub fn attention_bytes(&self) -> u64 {
        [&self.q, &self.k, &self.v, &self.o].map(|w| w.weight.byte_len()).iter().sum()
    }
}

impl MlpWeights {
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
        let weight = &self.gate.as_ref().unwrap_or(&self.up).weight;
        weight.byte_len() / weight.rows().max(1) as u64
    }
}

fn layer(spec: &ModelSpec, source: &mut dyn Source, index: usize) -> Result<LayerWeights> {
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
        Ok(Some((norm(spec, source, &q_norm, q_len)?, norm(spec, source, &k_norm, k_len)?)))
    };
    let qk_norm = match spec.qk_norm {
        QkNorm::None => None,
        QkNorm::Head => qk_norm(spec.head_dim, spec.head_dim)?,
        QkNorm::Projection => qk_norm(q_size, kv_size)?,
    };
    let mut block_norm = |there: bool, part: &str| match there {
        true => norm(spec, source, &name(part), hidden).map(Some),
        false => Ok(None),
    };
    Ok(LayerWeights {
        attention_norm: block_norm(norms.before(), names.attention_norm)?,
        attention_post_norm: block_norm(norms.after(), names.attention_post_norm)?,
        mlp_norm: block_norm(norms.before(), names.mlp_norm)?,
        mlp_post_norm: block_norm(norms.after(), names.mlp_post_norm)?,
        q,
        k,
        v,
        qk_norm,
        o: linear(source, &name(names.output), hidden, q_size, spec.biases.output)?,
        mlp: mlp(spec, source, index)?,
    })
}

fn mlp(spec: &ModelSpec, source: &mut dyn Source, index: usize) -> Result<MlpWeights> {
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
    let neuron_major = source.contains(&transposed);
    let weight = match neuron_major {
        true => source.weight(&transposed, intermediate, hidden)?,
        false => source.weight(&format!("{down}.weight"), hidden, intermediate)?,
    };
    let bias = if bias { Some(source.vector(&format!("{down}.bias"), hidden)?) } else { None };
    Ok(MlpWeights { gate, up, down: Linear { weight, bias, input_major: neuron_major } })
}

fn linear(source: &mut dyn Source, name: &str, rows: usize, cols: usize, bias: bool) -> Result<Linear> {
    let weight = source.weight(&format!("{name}.weight"), rows, cols)?;
    let bias = if bias { Some(source.vector(&format!("{name}.bias"), rows)?) } else { None };
    Ok(Linear { weight, bias, input_major: false })
}

fn norm(spec: &ModelSpec, source: &mut dyn Source, name: &str, len: usize) -> Result<NormWeights> {
    let weight = source.vector(&format!("{name}.weight"), len)?;
    let bias = match spec.norm.kind {
        NormKind::Rms { .. } => None,
        NormKind::Layer => Some(source.vector(&format!("{name}.bias"), len)?),
    };
    Ok(NormWeights { weight, bias })
}

impl Linear {
    fn rows(&self, start: usize, len: usize) -> Linear {
        let bias = self.bias.as_ref().map(|b| b[start..start + len].to_vec());
        Linear { weight: self.weight.row_range(start..start + len), bias, input_major: false }
    }

    fn make_input_major(&mut self, compute: &Compute) -> Result<()> {
        if self.input_major {
            return Ok(());
        }
        let stored = self.weight.clone();
        if stored.dtype().is_quantized() {
            let message = format!(
                "needs a row of each neuron, but the weights are quantised to {} with a row of each output: select (or \
                 `sparrow sparsify`) first, then quantise",
                stored.dtype()
            );
            return Err(Error::option("selector", message));
        }
        self.weight = stored.transposed(compute)?;
        self.input_major = true;
        stored.release();
        Ok(())
    }

    /// Outputs, whatever the layout.
    pub fn outputs(&self) -> usize {
        if self.input_major { self.weight.cols() } else { self.weight.rows() }
    }
}
