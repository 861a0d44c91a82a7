//! A loaded model, and the state of a forward pass over it.

mod clock;
pub mod forward;
pub mod kv;
mod mlp;
mod session;
pub mod spec;
pub mod weights;

use std::path::{Path, PathBuf};

use sparrow_kernels::DType;

pub(crate) use clock::Clock;
pub use clock::{Component, Timing};
pub use session::{Session, SessionOptions};

use crate::backend::Cpu;
use crate::checkpoint::config::{GenerationConfig, read_config, read_generation_config};
use crate::checkpoint::{Checkpoint, read_sidecar, require_dir};
use crate::error::{Error, Result};
use crate::sparsity::{Selection, Selector, SelectorSpec, Sidecar, is_relu_family};
use spec::{ModelSpec, Positions};
use weights::Weights;

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
}

impl Model {
    /// Loads a Hugging Face directory; weights are mapped, not read.
    ///
    /// # Errors
    /// If a file is missing or malformed, or the tensors are not what `config.json` calls for.
    pub fn load(dir: &Path) -> Result<Self> {
        require_dir(dir)?;
        let spec = read_config(&dir.join("config.json"))?;
        let generation = read_generation_config(dir)?;
        let mut checkpoint = Checkpoint::open(dir)?;
        let weights = Weights::load(&spec, &mut checkpoint)?;
        let sidecar = read_sidecar(dir, &spec, &mut checkpoint)?;
        checkpoint.refuse_unused()?;
        Ok(Model { spec, weights, generation, sidecar, dir: Some(dir.to_owned()) })
    }

    /// Makes the selector that `spec` names ready for this model. Any selector but `dense` needs neuron-major weights;
    /// where the checkpoint is not, the down projections are copied into memory that way (`sparrow sparsify` writes them so).
    ///
    /// # Errors
    /// If the selector needs calibration that this directory does not carry, or an option is out of range.
    pub fn prepare(&mut self, selector: SelectorSpec, cpu: &Cpu) -> Result<Selector> {
        let selector = self.selector(selector)?;
        if !selector.is_dense() {
            self.weights.make_neuron_major(&cpu.compute)?;
        }
        Ok(selector)
    }

    /// Quantises the weights to int8 or int4, in memory, after [`prepare`](Self::prepare): a sparse selector needs down
    /// projections neuron by neuron, which is how they are then quantised.
    ///
    /// # Errors
    /// As [`Weights::quantize`].
    pub fn quantize(&mut self, dtype: DType, cpu: &Cpu, progress: impl FnMut(u64, u64)) -> Result<()> {
        self.weights.quantize(dtype, &cpu.compute, progress)
    }

    /// The type of cached keys and values unless another is asked for: that of the weights, bf16 if they are quantised.
    pub fn default_kv_dtype(&self) -> DType {
        let dtype = self.weights.dtype();
        if dtype.is_quantized() { DType::BF16 } else { dtype }
    }

    /// The selector a directory asks for: what it was calibrated for, or `dense`.
    pub fn default_selector(&self) -> SelectorSpec {
        self.sidecar.as_ref().map_or(SelectorSpec::Dense, Sidecar::selector_spec)
    }

    fn selector(&self, selector: SelectorSpec) -> Result<Selector> {
        let layers = self.spec.num_layers;
        let calibrated = |what: &str| {
            let message =
                format!("{selector} needs {what}: run `sparrow sparsify MODEL -o OUT --selector {selector}` first");
            Error::option("selector", message)
        };
        match selector {
            SelectorSpec::Dense => Ok(Selector::dense()),
            SelectorSpec::Gate(Some(rule)) => Ok(Selector::gate(vec![rule; layers])),
            SelectorSpec::Gate(None) => match &self.sidecar {
                Some(sidecar) if sidecar.is_gate() => Ok(Selector::gate(sidecar.file.thresholds.clone())),
                // On an exact zero nothing is lost, so nothing needs calibration.
                _ if is_relu_family(self.spec.activation) => {
                    Ok(Selector::gate(vec![crate::sparsity::Threshold::Fixed(0.0); layers]))
                }
                _ => Err(calibrated("calibrated thresholds or a rule (gate:fixed=0.1)")),
            },
            SelectorSpec::LowRank(rule) => match &self.sidecar {
                Some(sidecar) if !sidecar.is_gate() => {
                    let thresholds = rule.map_or(sidecar.file.thresholds.clone(), |rule| vec![rule; layers]);
                    Ok(Selector::low_rank(sidecar.predictors.clone(), thresholds))
                }
                _ => Err(calibrated("predictors")),
            },
            SelectorSpec::Forced { active, overlap } => {
                for (option, value) in [("active", active), ("overlap", overlap)] {
                    if !(0.0..=1.0).contains(&value) {
                        return Err(Error::option(option, format!("must be in 0..=1, found {value}")));
                    }
                }
                Ok(Selector::forced(&self.spec, active, overlap))
            }
        }
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
    half_rotary: usize,
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
    pub cos: Vec<f32>,
    pub sin: Vec<f32>,
    pub frequencies: Vec<f32>,
    pub selection: Selection,
    pub clock: Clock,
    pub stats: Stats,
}

impl Scratch {
    pub fn new(spec: &ModelSpec) -> Self {
        let half_rotary = match &spec.positions {
            Positions::Rope(rope) => rope.rotary_dim / 2,
            Positions::Learned { .. } => 0,
        };
        Scratch {
            hidden: spec.hidden_size,
            q_size: spec.q_size(),
            kv_size: spec.kv_size(),
            intermediate: spec.intermediate_size,
            half_rotary,
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
            cos: Vec::new(),
            sin: Vec::new(),
            frequencies: vec![0.0; half_rotary],
            selection: Selection::default(),
            clock: Clock::default(),
            stats: Stats::new(spec),
        }
    }

    /// Sizes every buffer for `m` rows.
    pub fn resize(&mut self, m: usize) {
        let Scratch { hidden, q_size, kv_size, intermediate, half_rotary, .. } = *self;
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
            (&mut self.cos, half_rotary),
            (&mut self.sin, half_rotary),
        ] {
            buffer.resize(m * width, 0.0);
        }
    }
}

/// What the steps since the last reset computed and read.
#[derive(Debug, Clone)]
pub struct Stats {
    neurons: u64,
    rows: Vec<u64>,
    active: Vec<u64>,
    /// MLP and predictor bytes read.
    pub mlp_bytes: u64,
    /// Calls of the forward pass.
    pub steps: u64,
}

impl Stats {
    fn new(spec: &ModelSpec) -> Self {
        let zeros = vec![0; spec.num_layers];
        Stats { neurons: spec.intermediate_size as u64, rows: zeros.clone(), active: zeros, mlp_bytes: 0, steps: 0 }
    }

    fn add(&mut self, layer: usize, rows: usize, active: u64, bytes: u64) {
        self.rows[layer] += rows as u64;
        self.active[layer] += active;
        self.mlp_bytes += bytes;
    }

    /// Starts counting anew.
    pub fn reset(&mut self) {
        self.rows.fill(0);
        self.active.fill(0);
        (self.mlp_bytes, self.steps) = (0, 0);
    }

    /// Active neurons ÷ all, per layer, averaged over tokens; 1 where nothing ran.
    pub fn active_fraction_per_layer(&self) -> Vec<f64> {
        let fraction = |(&rows, &active): (&u64, &u64)| match rows {
            0 => 1.0,
            _ => active as f64 / (rows * self.neurons) as f64,
        };
        self.rows.iter().zip(&self.active).map(fraction).collect()
    }

    /// Active neurons ÷ all, averaged over tokens and layers.
    pub fn active_fraction(&self) -> f64 {
        let per_layer = self.active_fraction_per_layer();
        per_layer.iter().sum::<f64>() / per_layer.len() as f64
    }
}
