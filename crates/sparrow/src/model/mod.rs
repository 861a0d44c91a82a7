//! A loaded model, and the state of a forward pass over it.

mod clock;
pub mod format;
pub mod forward;
pub mod kv;
mod kv_options;
mod mlp;
pub mod names;
mod neuron_cache;
mod prepare;
mod project;
mod rope;
mod session;
pub mod spec;
pub mod weights;

use std::path::{Path, PathBuf};

use sparrow_kernels::DType;

pub(crate) use clock::Clock;
pub use clock::{Component, Timing};
pub use kv_options::{KvOptions, KvSparsity};
pub(crate) use session::{LOGIT_ROWS, PREFILL_ROWS};
pub use session::{Session, SessionOptions};

use crate::backend::Cpu;
use crate::checkpoint::config::{GenerationConfig, read_config, read_generation_config};
use crate::checkpoint::{Checkpoint, Placement, read_sidecar, require_dir};
use crate::error::{Error, Result};
use crate::sparsity::{ActiveInputs, Predictor, Selection, Selector, SelectorSpec, Sidecar, SkippedBlocks};
use format::WeightsFormat;
use neuron_cache::NeuronCache;
use spec::{ModelSpec, Rope};
use weights::{LayerWeights, Weights};

/// Specification, weights and what the directory says about sparsity.
#[derive(Debug)]
pub struct Model {
    /// The architecture, as data.
    pub spec: ModelSpec,
    /// The weights, mapped or in memory.
    pub weights: Weights,
    /// Ids that end generation.
    pub generation: GenerationConfig,
    /// What `sparrow sparsify` wrote, if the directory comes from it.
    pub sidecar: Option<Sidecar>,
    /// Where it was loaded from, if from a directory.
    pub dir: Option<PathBuf>,
    /// Where the weights are while it runs; see [`load_placed`](Self::load_placed).
    pub placement: Placement,
}

impl Model {
    /// Loads a Hugging Face directory; weights are mapped, not read.
    ///
    /// # Errors
    /// If a file is missing or malformed, or the tensors are not what `config.json` calls for.
    pub fn load(dir: &Path) -> Result<Self> {
        Self::load_placed(dir, Placement::Mapped)
    }

    /// Loads a Hugging Face directory, its weights where `placement` says.
    ///
    /// # Errors
    /// As [`load`](Self::load); also if the weights cannot be read, or are to be cached and are not neuron-major.
    pub fn load_placed(dir: &Path, placement: Placement) -> Result<Self> {
        require_dir(dir)?;
        let spec = read_config(&dir.join("config.json"))?;
        let generation = read_generation_config(dir)?;
        let mut checkpoint = Checkpoint::open(dir)?;
        let mut weights = Weights::load(&spec, &mut checkpoint)?;
        let mut sidecar = read_sidecar(dir, &spec, &mut checkpoint)?;
        checkpoint.refuse_unused(&spec.names)?;
        if let Placement::Cache(_) = placement
            && !weights.is_neuron_major()
        {
            let message = format!(
                "{placement} reads single neurons from the file, but {} does not store down projections neuron by neuron: \
                 run `sparrow sparsify {} -o OUT` and use OUT, or --weights mmap",
                dir.display(),
                dir.display()
            );
            return Err(Error::option("weights", message));
        }
        if placement != Placement::Mapped {
            weights.read_into_memory(placement == Placement::Memory)?;
            sidecar.iter_mut().flat_map(|s| &mut s.predictors).try_for_each(Predictor::read_into_memory)?;
        }
        if let Placement::Cache(_) = placement {
            // What loading has touched; from here on only the cache decides what of the MLPs is in memory.
            checkpoint.evict();
        }
        Ok(Model { spec, weights, generation, sidecar, dir: Some(dir.to_owned()), placement })
    }

    /// Makes the selector that `spec` names ready for this model. Selectors of neurons need neuron-major weights, `input` needs
    /// all projections input-major; where the checkpoint is not, they are copied into memory that way (`sparrow sparsify`
    /// writes down projections neuron-major).
    ///
    /// # Errors
    /// If the selector needs calibration that this directory does not carry, or an option is out of range.
    pub fn prepare(&mut self, selector: &SelectorSpec, cpu: &Cpu) -> Result<Selector> {
        let selector = prepare::selector(self, selector, cpu)?;
        if selector.selects_neurons() {
            self.weights.make_neuron_major(&cpu.compute)?;
        }
        if selector.inputs().is_some() {
            self.weights.make_input_major(&cpu.compute)?;
        }
        if let Placement::Cache(_) = self.placement {
            if selector.computes_gate() {
                self.weights.read_gates_into_memory()?;
            }
            // Selectors may be made from weights, which then were read through the maps.
            self.weights.evict();
        }
        Ok(selector)
    }

    /// Quantises the weights to int8 or int4, in memory, after [`prepare`](Self::prepare): a sparse selector needs down
    /// projections neuron by neuron, which is how they are then quantised.
    ///
    /// # Errors
    /// As [`Weights::quantize`].
    pub fn quantize(&mut self, dtype: DType, cpu: &Cpu, progress: impl FnMut(u64, u64)) -> Result<()> {
        if let Placement::Cache(_) = self.placement {
            let message = format!("{} reads weights as the file has them: they cannot be quantised", self.placement);
            return Err(Error::option("dtype", message));
        }
        self.weights.quantize(dtype, &cpu.compute, progress)
    }

    /// Stores the matrices as `format` asks, in memory where that is another way than they are stored in now: after
    /// [`prepare`](Self::prepare) and [`quantize`](Self::quantize), so that nothing is packed twice.
    ///
    /// # Errors
    /// As [`Weights::set_format`].
    pub fn set_format(&mut self, format: &WeightsFormat, cpu: &Cpu, progress: impl FnMut(u64, u64)) -> Result<()> {
        match self.placement {
            // Single neurons are read from the file as it has them.
            Placement::Cache(_) => Ok(()),
            _ => self.weights.set_format(&self.spec, format, &cpu.compute, progress),
        }
    }

    /// The type of cached keys and values unless another is asked for: that of the weights, bf16 if they are quantised.
    pub fn default_kv_dtype(&self) -> DType {
        let dtype = self.weights.dtype();
        if dtype.is_quantized() { DType::BF16 } else { dtype }
    }

    /// The selector a directory asks for: what it was calibrated for, or `dense`.
    pub fn default_selector(&self) -> SelectorSpec {
        self.sidecar.as_ref().map_or(SelectorSpec::Dense, |sidecar| sidecar.file.method.selector())
    }
}

/// One token of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Row {
    /// Id, below the vocabulary size.
    pub token: u32,
    /// Index of the sequence's cache.
    pub sequence: usize,
    /// Position in the sequence, from 0.
    pub position: usize,
    /// Tokens the sequence has once the whole call is done: what dynamic RoPE scales by.
    pub sequence_len: usize,
}

/// Working memory of the forward pass; grows to the largest step and is then reused, so that a step allocates nothing.
#[derive(Debug)]
pub(crate) struct Scratch {
    hidden: usize,
    q_size: usize,
    kv_size: usize,
    intermediate: usize,
    pub x: Vec<f32>,
    pub h: Vec<f32>,
    pub q: Vec<f32>,
    pub k: Vec<f32>,
    pub v: Vec<f32>,
    pub attended: Vec<f32>,
    pub gate: Vec<f32>,
    pub up: Vec<f32>,
    pub neurons: Vec<f32>,
    pub out: Vec<f32>,
    /// One for each of the model's ropes.
    pub ropes: Vec<RopeTable>,
    pub selection: Selection,
    pub inputs: ActiveInputs,
    /// Where the MLPs' weights are not all in memory.
    pub cache: Option<NeuronCache>,
    pub clock: Clock,
    pub stats: Stats,
}

impl Scratch {
    pub fn new(spec: &ModelSpec) -> Self {
        Scratch {
            hidden: spec.hidden_size,
            q_size: spec.q_size(),
            kv_size: spec.kv_size(),
            intermediate: spec.intermediate_size,
            x: Vec::new(),
            h: Vec::new(),
            q: Vec::new(),
            k: Vec::new(),
            v: Vec::new(),
            attended: Vec::new(),
            gate: Vec::new(),
            up: Vec::new(),
            neurons: Vec::new(),
            out: Vec::new(),
            ropes: spec.ropes().map(RopeTable::new).collect(),
            selection: Selection::default(),
            inputs: ActiveInputs::default(),
            cache: None,
            clock: Clock::default(),
            stats: Stats::new(spec),
        }
    }

    /// Room for what `m` rows may need beyond [`resize`](Self::resize).
    pub fn reserve(&mut self, m: usize, spec: &ModelSpec) {
        self.selection.reserve(m, spec);
        self.inputs.reserve(m, self.intermediate.max(self.q_size).max(self.hidden));
    }

    /// Sizes every buffer for `m` rows.
    pub fn resize(&mut self, m: usize) {
        let Scratch { hidden, q_size, kv_size, intermediate, .. } = *self;
        for (buffer, width) in [
            (&mut self.x, hidden),
            (&mut self.h, hidden),
            (&mut self.q, q_size),
            (&mut self.k, kv_size),
            (&mut self.v, kv_size),
            (&mut self.attended, q_size.max(kv_size)),
            (&mut self.gate, intermediate),
            (&mut self.up, intermediate),
            (&mut self.neurons, intermediate),
            (&mut self.out, hidden),
        ] {
            buffer.resize(m * width, 0.0);
        }
        for RopeTable { cos, sin, frequencies } in &mut self.ropes {
            cos.resize(m * frequencies.len(), 0.0);
            sin.resize(m * frequencies.len(), 0.0);
        }
    }
}

/// The rotations of a step's rows by one of the model's ropes.
#[derive(Debug)]
pub(crate) struct RopeTable {
    /// `[m, rotary_dim / 2]`.
    pub cos: Vec<f32>,
    /// `[m, rotary_dim / 2]`.
    pub sin: Vec<f32>,
    /// `[rotary_dim / 2]`.
    pub frequencies: Vec<f32>,
}

impl RopeTable {
    fn new(rope: &Rope) -> Self {
        RopeTable { cos: Vec::new(), sin: Vec::new(), frequencies: vec![0.0; rope.rotary_dim / 2] }
    }
}

/// What the steps since the last reset computed and read.
#[derive(Debug, Clone)]
pub struct Stats {
    /// Per layer: what was computed and what there was, summed over tokens; neurons for a selector of neurons, weights for
    /// one of inputs or blocks.
    layers: Vec<(u64, u64)>,
    /// Bytes read in decoder layers, for selecting included.
    pub layer_bytes: u64,
    /// MLP bytes copied or read into the pools of the weight cache, or streamed past them.
    pub store_bytes: u64,
    /// Calls of the forward pass.
    pub steps: u64,
}

impl Stats {
    fn new(spec: &ModelSpec) -> Self {
        Stats { layers: vec![(0, 0); spec.num_layers], layer_bytes: 0, store_bytes: 0, steps: 0 }
    }

    fn add(&mut self, layer: usize, active: u64, of: u64, bytes: u64) {
        let counts = &mut self.layers[layer];
        *counts = (counts.0 + active, counts.1 + of);
        self.layer_bytes += bytes;
    }

    /// Counts the weights of the blocks that were left out for `m` tokens, and of those that were not.
    fn skip(&mut self, layer: usize, m: usize, weights: &LayerWeights, blocks: &SkippedBlocks) {
        let (attention, mlp) = (weights.attention_bytes() * m as u64, weights.mlp.bytes() * m as u64);
        let run = |skipped: bool, bytes| if skipped { 0 } else { bytes };
        let active = run(blocks.attention.contains(&layer), attention) + run(blocks.mlp.contains(&layer), mlp);
        self.add(layer, active, attention + mlp, 0);
    }

    /// Starts counting anew.
    pub fn reset(&mut self) {
        self.layers.fill((0, 0));
        (self.layer_bytes, self.store_bytes, self.steps) = (0, 0, 0);
    }

    /// What was active ÷ all, per layer, averaged over tokens: neurons of the MLP, or weights of the layer for a selector
    /// of inputs or blocks; 1 where nothing was selected.
    pub fn active_fraction_per_layer(&self) -> Vec<f64> {
        let fraction = |&(active, of): &(u64, u64)| if of == 0 { 1.0 } else { active as f64 / of as f64 };
        self.layers.iter().map(fraction).collect()
    }

    /// The same, averaged over layers.
    pub fn active_fraction(&self) -> f64 {
        let per_layer = self.active_fraction_per_layer();
        per_layer.iter().sum::<f64>() / per_layer.len() as f64
    }
}
