//! A loaded model: architecture, weights, and what its directory says about sparsity.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use sparrow_kernels::DType;

use crate::backend::{Cpu, Predictor};
use crate::checkpoint::config::{GenerationConfig, parse_config};
use crate::checkpoint::{Checkpoint, Decoded, ModelFiles};
use crate::error::{Error, Result};
use crate::record::{Sidecar, read_sidecar};
use crate::residency::Placement;
use crate::select::{Loaded, Neurons, Selector, SelectorSpec};
use crate::spec::ModelSpec;
use crate::tensor::{Tensor, room};
use crate::weights::{Source, Weights, WeightsFormat};

/// Specification, weights and what the directory says about sparsity.
#[derive(Debug)]
pub struct Model {
    /// The architecture, as data.
    pub spec: ModelSpec,
    /// The weights, mapped or in memory; shared with the sessions that run them.
    pub weights: Arc<Weights>,
    /// Ids that end generation.
    pub generation: GenerationConfig,
    /// What `sparrow sparsify` wrote, if the directory comes from it.
    pub sidecar: Option<Sidecar>,
    /// Where it was loaded from, if from a directory.
    pub dir: Option<PathBuf>,
    /// Where the weights are while it runs.
    pub placement: Placement,
    /// What of its files was decoded.
    pub decoded: Option<Decoded>,
}

/// Tells how much of a checkpoint was read.
struct Watched<'a> {
    checkpoint: &'a mut Checkpoint,
    done: u64,
    total: u64,
    progress: &'a mut dyn FnMut(u64, u64),
}

impl Source for Watched<'_> {
    fn matrix(&mut self, name: &str, rows: usize, cols: usize) -> Result<Tensor> {
        let tensor = self.checkpoint.matrix(name, rows, cols)?;
        self.done += tensor.bytes().len() as u64;
        (self.progress)(self.done.min(self.total), self.total);
        Ok(tensor)
    }
    fn vector(&mut self, name: &str, len: usize) -> Result<Vec<f32>> {
        self.checkpoint.vector(name, len)
    }
    fn contains(&self, name: &str) -> bool {
        self.checkpoint.contains(name)
    }
}

impl Model {
    /// Loads a Hugging Face directory or a GGUF file, its weights where `placement` says.
    ///
    /// # Errors
    /// If a file is missing or malformed, or the tensors are not what `config.json` calls for; if the weights cannot be read, or are
    /// to be cached and are not neuron-major.
    pub fn load(dir: &Path, placement: Placement) -> Result<Self> {
        Self::read(&ModelFiles::open(dir)?, placement, |_, _| ())
    }

    /// The model of these files, as [`load`](Self::load). `progress(done, total)` counts bytes that are decoded or read into memory.
    ///
    /// # Errors
    /// As [`load`](Self::load).
    pub fn read(files: &ModelFiles, placement: Placement, mut progress: impl FnMut(u64, u64)) -> Result<Self> {
        files.require_model()?;
        let dir = files.path();
        let config = files.json("config.json")?.unwrap_or_default();
        let mut spec = parse_config(&files.path_of("config.json"), &config)?;
        let generation = files.generation_config()?;
        let mut checkpoint = files.checkpoint()?;
        spec.tied = spec.tied && !checkpoint.has_own_head(&spec.names);
        let decoded = checkpoint.decoded();
        let mut weights = match &decoded {
            None => Weights::load(&spec, &mut checkpoint)?,
            Some(decoded) => {
                let mend =
                    "`sparrow convert` writes them to disk, from where --weights mmap reads them as they are wanted";
                room::ask(|| format!("weights decoded to {}", decoded.to), decoded.bytes, mend)?;
                let mut watched =
                    Watched { checkpoint: &mut checkpoint, done: 0, total: decoded.bytes, progress: &mut progress };
                Weights::load(&spec, &mut watched)?
            }
        };
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
            let needed = weights.mapped_bytes(placement == Placement::Memory);
            let mend = "--weights mmap reads them from the file as they are wanted, --weights cache:0.2 keeps a part";
            room::ask(|| "the weights".into(), needed, mend)?;
            weights.read_into_memory(placement == Placement::Memory, progress)?;
            sidecar.iter_mut().flat_map(|s| &mut s.predictors).try_for_each(Predictor::read_into_memory)?;
        }
        if let Placement::Cache(_) = placement {
            // What loading has touched; from here on only the cache decides what of the MLPs is in memory.
            checkpoint.evict();
        }
        let (weights, dir) = (Arc::new(weights), Some(dir.to_owned()));
        Ok(Model { spec, weights, generation, sidecar, dir, placement, decoded })
    }

    /// The weights, to be changed before a session shares them.
    ///
    /// # Panics
    /// If a session does.
    pub fn weights_mut(&mut self) -> &mut Weights {
        Arc::get_mut(&mut self.weights).expect("weights are changed before they are shared")
    }

    /// Makes the selector that `spec` names ready for this model. Selectors of neurons need neuron-major weights, `input` needs
    /// all projections input-major; where the checkpoint is not, they are copied into memory that way (`sparrow sparsify`
    /// writes down projections neuron-major), of which `progress(done, total)` counts the bytes.
    ///
    /// # Errors
    /// If the selector needs calibration that this directory does not carry, or an option is out of range.
    pub(crate) fn prepare(
        &mut self,
        selector: &SelectorSpec,
        cpu: &Cpu,
        progress: impl FnMut(u64, u64),
    ) -> Result<Selector> {
        let model = Loaded {
            spec: &self.spec,
            weights: &self.weights,
            calibrated: self.sidecar.as_ref().and_then(|sidecar| sidecar.file.method.as_ref()),
            predictors: self.sidecar.as_ref().map_or(&[], |sidecar| &sidecar.predictors),
            norms: self.sidecar.as_ref().and_then(|sidecar| sidecar.norms.as_ref()),
            gate_neurons: self.sidecar.as_ref().and_then(|sidecar| sidecar.gate_neurons.as_deref()),
            placement: self.placement,
            cpu,
        };
        let selector = selector.kind().ready(selector, &model)?;
        let placement = self.placement;
        if selector.selects_inputs() {
            self.weights_mut().make_input_major(&cpu.compute, progress)?;
        } else if selector.selects_neurons() && !self.weights.is_neuron_major() {
            self.weights_mut().make_neuron_major(&cpu.compute, progress)?;
        }
        if let Placement::Cache(cache) = placement {
            let magnitudes = |neurons: &Neurons| neurons.scorer.compares_magnitudes(self.spec.activation, 0);
            if cache.prefer > 1.0 && !selector.neurons().is_some_and(magnitudes) {
                let message = "prefer= weighs the magnitudes of gates: use --selector gate".to_owned();
                return Err(Error::option("weights", message));
            }
            if selector.computes_gate() {
                self.weights_mut().read_gates_into_memory()?;
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
    pub(crate) fn quantize(&mut self, dtype: DType, cpu: &Cpu, progress: impl FnMut(u64, u64)) -> Result<()> {
        if let Placement::Cache(_) = self.placement {
            let message = format!("{} reads weights as the file has them: they cannot be quantised", self.placement);
            return Err(Error::option("dtype", message));
        }
        self.weights_mut().quantize(dtype, &cpu.compute, progress)
    }

    /// Stores the matrices as `format` asks, in memory where that is another way than they are stored in now: after
    /// [`prepare`](Self::prepare) and [`quantize`](Self::quantize), so that nothing is compressed twice.
    ///
    /// # Errors
    /// As [`Weights::set_format`].
    pub(crate) fn set_format(
        &mut self,
        format: &WeightsFormat,
        cpu: &Cpu,
        progress: impl FnMut(u64, u64),
    ) -> Result<()> {
        match self.placement {
            // Single neurons are read from the file as it has them.
            Placement::Cache(_) => Ok(()),
            _ => {
                let weights = Arc::get_mut(&mut self.weights).expect("weights are changed before they are shared");
                weights.set_format(&self.spec, format, &cpu.compute, progress)
            }
        }
    }

    /// The type of cached keys and values unless another is asked for: that of the weights, bf16 if they are quantised.
    pub fn default_kv_dtype(&self) -> DType {
        let dtype = self.weights.dtype();
        if dtype.is_quantized() { DType::BF16 } else { dtype }
    }

    /// What a directory asks its weights to be quantised to while they are loaded. From a cache they are read as the file has them.
    pub fn default_dtype(&self) -> Option<DType> {
        let tuned = self.sidecar.as_ref().and_then(|sidecar| sidecar.file.dtype);
        tuned.filter(|_| !matches!(self.placement, Placement::Cache(_)))
    }

    /// The selector a directory asks for: what it was calibrated for, or `dense`.
    pub fn default_selector(&self) -> SelectorSpec {
        let record = self.sidecar.as_ref().and_then(|sidecar| sidecar.file.record());
        record.map_or_else(SelectorSpec::dense, |record| SelectorSpec::calibrated(record.kind()))
    }
}
