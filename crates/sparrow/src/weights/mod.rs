//! The weights of a model, by role.

mod format;
mod key_sizes;
mod layer;

pub use format::{Format, WeightsFormat};
pub use layer::{LayerWeights, Linear, LinearView, MlpWeights, NormWeights};

use sparrow_kernels::{Compute, DType};

use crate::error::{Error, Result};
use crate::spec::{ModelSpec, Positions};
use crate::tensor::{Tensor, Weight, room};

/// Suffix of a down projection that is stored transposed, `[intermediate, hidden]`: row `i` belongs to neuron `i`.
pub const NEURON_MAJOR: &str = "weight_neuron_major";

/// Last part of the module whose weight is the transposed one of the module that it is in: a row belongs to an input.
pub const INPUT_MAJOR: &str = "input_major";

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
        let norm = NormWeights::load(spec, source, names.norm, hidden)?;
        Ok(Weights { embedding, positions, layers, norm, head })
    }

    /// The type of the layers' first matrix; others may have others, see [`dtypes`](Self::dtypes).
    pub fn dtype(&self) -> DType {
        self.layers[0].q.weight.dtype()
    }

    /// The types of the layers' matrices, that of the most bytes first, as reports name them: `int4`, or `int4+int8`. Copies that
    /// a selector needs count, the head and the embedding do not.
    pub fn dtypes(&self) -> String {
        let mut bytes: Vec<(DType, u64)> = Vec::new();
        for Linear { weight, .. } in self.layers.iter().flat_map(LayerWeights::projections) {
            match bytes.iter_mut().find(|(dtype, _)| *dtype == weight.dtype()) {
                Some((_, sum)) => *sum += weight.byte_len(),
                None => bytes.push((weight.dtype(), weight.byte_len())),
            }
        }
        bytes.sort_by_key(|&(_, sum)| std::cmp::Reverse(sum));
        bytes.iter().map(|(dtype, _)| dtype.to_string()).collect::<Vec<_>>().join("+")
    }

    /// Turns every down projection neuron-major in memory, if it is not yet; the mapped originals are released.
    /// `progress(done, total)` counts their bytes.
    ///
    /// # Errors
    /// If memory runs out, one is a bitmap of a quantised type, whose rows cannot be taken apart, or gates have rows of inputs.
    pub fn make_neuron_major(&mut self, compute: &Compute, progress: impl FnMut(u64, u64)) -> Result<()> {
        if self.layers.iter().any(|layer| layer.mlp.up.input_major) {
            let message = "needs a row of each neuron, but the weights have a row of each input: use input or dense";
            return Err(Error::option("selector", message));
        }
        let down = self.layers.iter_mut().map(|layer| &mut layer.mlp.down);
        make_input_major(down.collect(), compute, progress)
    }

    /// Turns every projection of the layers input-major in memory, as [`make_neuron_major`](Self::make_neuron_major).
    ///
    /// # Errors
    /// As [`make_neuron_major`](Self::make_neuron_major).
    pub fn make_input_major(&mut self, compute: &Compute, progress: impl FnMut(u64, u64)) -> Result<()> {
        let all = self.layers.iter_mut().flat_map(LayerWeights::projections_mut);
        make_input_major(all.collect(), compute, progress)
    }

    /// Reads the mapped matrices into memory, those of MLPs only with `mlps`. `progress(done, total)` counts bytes.
    ///
    /// # Errors
    /// If a file cannot be read or has become shorter, or memory runs out.
    pub fn read_into_memory(&mut self, mlps: bool, mut progress: impl FnMut(u64, u64)) -> Result<()> {
        let tied = self.is_tied();
        let (total, mut done) = (self.bytes() - if mlps { 0 } else { self.mlp_bytes() }, 0);
        let mut read = |weight: &mut Weight| {
            *weight = weight.to_memory()?;
            done += weight.byte_len();
            progress(done, total);
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
        self.positions.iter_mut().try_for_each(&mut read)?;
        read(&mut self.embedding)?;
        match tied {
            true => self.head = self.embedding.clone(),
            false => read(&mut self.head)?,
        }
        Ok(())
    }

    /// Bytes that are mapped from files, those of MLPs only with `mlps`.
    pub fn mapped_bytes(&self, mlps: bool) -> u64 {
        let of_layer = |layer: &LayerWeights| {
            let LayerWeights { q, k, v, o, mlp, .. } = layer;
            let mlp = [&mlp.up, &mlp.down].into_iter().chain(&mlp.gate).filter(|_| mlps);
            [q, k, v, o].into_iter().chain(mlp).map(|linear| linear.weight.mapped_bytes()).sum::<u64>()
        };
        let head = if self.is_tied() { None } else { Some(&self.head) };
        let outside = [&self.embedding].into_iter().chain(head).chain(&self.positions);
        self.layers.iter().map(of_layer).sum::<u64>() + outside.map(Weight::mapped_bytes).sum::<u64>()
    }

    /// Reads the matrices that [deciding](MlpWeights::deciding) on neurons needs for every token into memory:
    /// gates, or the up projections of ungated MLPs.
    ///
    /// # Errors
    /// As [`read_into_memory`](Self::read_into_memory).
    pub fn read_gates_into_memory(&mut self) -> Result<()> {
        self.layers.iter_mut().try_for_each(|layer| {
            let deciding = layer.mlp.gate.as_mut().unwrap_or(&mut layer.mlp.up);
            deciding.weight = deciding.weight.to_memory()?;
            Ok(())
        })
    }

    /// Takes the pages of the MLPs' files out of this process's resident memory and out of the page cache.
    pub fn evict(&self) {
        let mlps = self.layers.iter().map(|layer| &layer.mlp);
        for linear in mlps.flat_map(|mlp| mlp.gate.iter().chain([&mlp.up, &mlp.down])) {
            linear.weight.evict();
        }
    }

    /// Whether every matrix of the MLPs has a row per neuron.
    pub fn is_neuron_major(&self) -> bool {
        self.layers.iter().all(|layer| layer.mlp.down.input_major && !layer.mlp.up.input_major)
    }

    /// Whether every projection of the layers has a row per input.
    pub fn is_input_major(&self) -> bool {
        self.layers.iter().flat_map(LayerWeights::projections).all(|linear| linear.input_major)
    }

    /// Quantises every matrix that tokens are multiplied with and that is not quantised yet, in memory; the mapped originals
    /// are released. The head, and with it a tied embedding, keeps eight bits also where the layers become int4: its errors go
    /// straight into the logits, and it is a small part of the bytes. `progress(done, total)` counts bytes of the originals.
    ///
    /// # Errors
    /// If `dtype` is not a quantised type, a matrix is quantised to another, but for int8 beside `dtype`, or memory runs out.
    pub fn quantize(&mut self, dtype: DType, compute: &Compute, mut progress: impl FnMut(u64, u64)) -> Result<()> {
        let stored = || self.layers.iter().flat_map(LayerWeights::projections).map(|linear| linear.weight.dtype());
        // Where some are `dtype`, those of eight bits were given more on purpose.
        let mixed = stored().any(|stored| stored == dtype);
        let stays = |stored: DType| stored == dtype || mixed && stored == DType::I8;
        let other =
            |stored: DType| !dtype.is_quantized() || !dtype.is_writable() || stored.is_quantized() && !stays(stored);
        if let Some(stored) = stored().find(|&stored| other(stored)) {
            let message = format!(
                "the weights are {stored}: floats can be quantised to int8, int4 or Q8_0, not these to {dtype}"
            );
            return Err(Error::option("dtype", message));
        }
        let tied = self.is_tied();
        let of_head = if dtype == DType::Q8_0 { DType::Q8_0 } else { DType::I8 };
        let (total, mut done) = (self.bytes_outside_mlp() + self.mlp_bytes(), 0);
        let weights = self.layers.iter().flat_map(LayerWeights::projections).map(|linear| (&linear.weight, dtype));
        let of = |(weight, dtype): (&Weight, DType)| (weight.rows() * dtype.row_bytes(weight.cols())) as u64;
        let weights = weights.chain([(&self.head, of_head)]).filter(|(weight, _)| !weight.dtype().is_quantized());
        room::ask(
            || format!("weights of {dtype}"),
            weights.map(of).sum(),
            "choose a smaller --dtype, or leave it out",
        )?;
        let mut replace = |weight: &mut Weight, dtype| {
            if !weight.dtype().is_quantized() {
                let stored = std::mem::replace(weight, weight.quantized(dtype, compute)?);
                stored.release();
                done += stored.byte_len();
                progress(done, total);
            }
            Ok(())
        };
        for layer in &mut self.layers {
            // What is quantised stays as it is: down projections come first.
            let of_down = layer.mlp.down_quantized_to(dtype);
            replace(&mut layer.mlp.down.weight, of_down)?;
            layer.projections_mut().try_for_each(|linear| replace(&mut linear.weight, dtype))?;
        }
        replace(&mut self.head, of_head)?;
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

/// Turns matrices input-major in memory; `progress(done, total)` counts their bytes.
fn make_input_major(matrices: Vec<&mut Linear>, compute: &Compute, mut progress: impl FnMut(u64, u64)) -> Result<()> {
    let (total, mut done) = (matrices.iter().map(|linear| linear.weight.byte_len()).sum(), 0);
    let copied = matrices.iter().filter(|linear| !linear.input_major).map(|linear| linear.weight.byte_len()).sum();
    let mend = "use --selector dense, or a model that `sparrow sparsify` wrote elsewhere";
    room::ask(|| "projections with a row for each input".into(), copied, mend)?;
    for linear in matrices {
        linear.make_input_major(compute)?;
        done += linear.weight.byte_len();
        progress(done, total);
    }
    Ok(())
}
