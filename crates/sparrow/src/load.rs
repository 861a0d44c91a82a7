//! The one way to open a model.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use sparrow_kernels::DType;

use crate::KvOptions;
use crate::backend::Cpu;
use crate::checkpoint::{ModelFiles, hub};
use crate::engine::{Engine, EngineOptions};
use crate::error::{Error, Result};
use crate::model::Model;
use crate::residency::Placement;
use crate::run::{Session, SessionOptions};
use crate::select::{Selector, SelectorSpec};
use crate::text::Tokenizer;
use crate::weights::WeightsFormat;

/// What takes time while a model is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LoadStage {
    /// Reading weights into memory, and decoding those of a GGUF file, counted in bytes.
    Reading,
    /// Giving neurons or inputs rows of their own, counted in bytes.
    Transposing,
    /// Quantising weights, counted in bytes.
    Quantizing,
    /// Compressing matrices with many zeros to bitmaps, or expanding them, counted in matrices.
    Compressing,
}

impl LoadStage {
    /// What is done, in a few words.
    pub fn name(self) -> &'static str {
        match self {
            LoadStage::Reading => "reading weights",
            LoadStage::Transposing => "transposing weights",
            LoadStage::Quantizing => "quantising weights",
            LoadStage::Compressing => "compressing zeros",
        }
    }
}

/// How a model is to be opened: `Load::new("DIR").dtype(DType::I8).open(|_, _, _| ())`.
#[derive(Debug)]
pub struct Load {
    source: Source,
    selector: Option<SelectorSpec>,
    dtype: Option<DType>,
    weights: Placement,
    format: WeightsFormat,
    cpu: Option<Arc<Cpu>>,
    threads: Option<usize>,
}

#[derive(Debug)]
enum Source {
    /// A directory, a file, or a hub id.
    Named(PathBuf),
    /// A model that was made, not read.
    Made(Box<Model>),
}

/// A model that is ready to run.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// Architecture, weights, and what its directory says of it.
    pub model: Arc<Model>,
    /// What is computed of it.
    pub selector: Selector,
    /// The name of that.
    pub selector_spec: SelectorSpec,
    /// What it runs on.
    pub cpu: Arc<Cpu>,
    tokenizer: Option<Arc<Tokenizer>>,
}

impl Load {
    /// The model in a Hugging Face directory, in a GGUF file, or of a hub id `org/name[/FILE.gguf][@revision]`, as it is stored and as it was sparsified.
    pub fn new(source: impl Into<PathBuf>) -> Self {
        Self::of(Source::Named(source.into()))
    }

    /// A model in memory.
    #[doc(hidden)]
    pub fn made(model: Model) -> Self {
        let weights = model.placement;
        Self::of(Source::Made(Box::new(model))).weights(weights)
    }

    fn of(source: Source) -> Self {
        Load {
            source,
            selector: None,
            dtype: None,
            weights: Placement::default(),
            format: WeightsFormat::default(),
            cpu: None,
            threads: None,
        }
    }

    /// What is computed; otherwise what the model was sparsified for, else everything.
    pub fn selector(mut self, selector: impl Into<Option<SelectorSpec>>) -> Self {
        self.selector = selector.into();
        self
    }

    /// Quantises weights to this type, unless they are stored so; otherwise to what the model was tuned for. A float type must be
    /// that of the weights; a GGUF file is decoded to it.
    pub fn dtype(mut self, dtype: impl Into<Option<DType>>) -> Self {
        self.dtype = dtype.into();
        self
    }

    /// Where the weights are while the model runs.
    pub fn weights(mut self, placement: Placement) -> Self {
        self.weights = placement;
        self
    }

    /// Which matrices are kept as bitmaps and the elements that are not zero.
    pub fn format(mut self, format: WeightsFormat) -> Self {
        self.format = format;
        self
    }

    /// Runs on so many threads; otherwise on as many as the system lets this process use.
    pub fn threads(mut self, threads: impl Into<Option<usize>>) -> Self {
        self.threads = threads.into();
        self
    }

    /// Runs on the threads of another model.
    pub fn cpu(mut self, cpu: Arc<Cpu>) -> Self {
        self.cpu = Some(cpu);
        self
    }

    /// Opens it. `progress(stage, done, total)` hears of what takes time.
    ///
    /// # Errors
    /// If there is no such model, a file is missing or malformed, tensors are not what `config.json` calls for, the selector needs
    /// calibration that the model does not carry, weights cannot be stored as asked for, or memory runs out.
    pub fn open(self, mut progress: impl FnMut(LoadStage, u64, u64)) -> Result<Loaded> {
        let Load { source, selector, dtype, weights, format, cpu, threads } = self;
        let cpu = cpu.unwrap_or_else(|| Arc::new(Cpu::new(threads)));
        let (mut model, tokenizer) = match source {
            Source::Named(source) => {
                let files = ModelFiles::open(&resolve(&source)?)?;
                let files = match dtype {
                    None => files.as_stored(),
                    // Quantised later.
                    Some(dtype) => files.decoded_to(Some(dtype).filter(|dtype| !dtype.is_quantized())),
                };
                let tokenizer = files.has("tokenizer.json").then(|| Tokenizer::read(&files));
                let read = |done, total| progress(LoadStage::Reading, done, total);
                (Model::read(&files, weights, read)?, tokenizer.transpose()?.map(Arc::new))
            }
            Source::Made(model) => (*model, None),
        };
        let selector_spec = selector.unwrap_or_else(|| model.default_selector());
        // In this order: neurons in rows first, so that these are what is quantised, and zeros last, so that they are what is left out.
        let selector =
            model.prepare(&selector_spec, &cpu, |done, total| progress(LoadStage::Transposing, done, total))?;
        let dtype = dtype.or(model.default_dtype());
        if let Some(dtype) = dtype.filter(|&dtype| dtype.is_quantized() || dtype != model.weights.dtype()) {
            model.quantize(dtype, &cpu, |done, total| progress(LoadStage::Quantizing, done, total))?;
        }
        model.set_format(&format, &cpu, |done, total| progress(LoadStage::Compressing, done, total))?;
        Ok(Loaded { model: Arc::new(model), selector, selector_spec, cpu, tokenizer })
    }
}

/// The directory of a model: the one named, or the hub's copy of that id.
fn resolve(source: &Path) -> Result<PathBuf> {
    match source.to_str() {
        Some(name) => hub::resolve(name),
        None => Ok(source.to_owned()),
    }
}

impl Loaded {
    /// The tokenizer beside the model.
    ///
    /// # Errors
    /// If it has none.
    pub fn tokenizer(&self) -> Result<&Arc<Tokenizer>> {
        self.tokenizer.as_ref().ok_or_else(|| {
            let dir = self.model.dir.clone().unwrap_or_default().join("tokenizer.json");
            Error::Tokenizer(format!("{} is missing: the model directory needs it", dir.display()))
        })
    }

    /// A session of it; one for each selector that is compared.
    ///
    /// # Errors
    /// As [`Session::new`].
    pub fn session(&self, options: SessionOptions) -> Result<Session> {
        Session::new(self.model.clone(), self.cpu.clone(), self.selector.clone(), options)
    }

    /// An engine that serves requests with it.
    ///
    /// # Errors
    /// As [`Session::new`] and [`Engine::new`].
    pub fn engine(&self, kv: KvOptions, options: EngineOptions) -> Result<Engine> {
        let session = self.session(SessionOptions { sequences: 0, capacity: 0, kv })?;
        Engine::new(session, self.tokenizer.clone(), options)
    }
}
