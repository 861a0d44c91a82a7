//! Ways of running one model, measured on text that nothing was calibrated on, and the one that was chosen, written as a directory.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use sparrow::internals::backend::{Threshold, is_relu_family};
use sparrow::internals::checkpoint::{Directory, ModelFiles, pretty};
use sparrow::internals::record::{Evaluation, Quality, SidecarFile, Trial};
use sparrow::internals::select::{Found, Goal, Method};
use sparrow::{Cpu, DType, Error, KvOptions, Load, Model, Placement, Result, SelectorSpec, Tokenizer};

use crate::eval::{evaluate, sessions};
use crate::sparsify::{self, SparsifyOptions, sparsify};
use crate::text::{Reading, Text};

/// Fractions of the layers' weights that `input` may keep, most first.
pub const FRACTIONS: [f64; 5] = [0.9, 0.8, 0.7, 0.6, 0.5];

/// What is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Computed {
    /// Everything.
    All,
    /// The neurons of a ReLU model that are not zero: the same, for less.
    OpenGates,
    /// What `input` keeps: the place in [`FRACTIONS`].
    Inputs(usize),
}

/// A way of running the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Setting {
    /// What weights are quantised to; none: they stay as they are.
    pub dtype: Option<DType>,
    /// What is computed of them.
    pub computed: Computed,
}

/// How a text is read.
#[derive(Debug, Clone, Copy)]
pub struct TuneOptions {
    /// Tokens of a window.
    pub window: usize,
    /// Windows begin with the beginning-of-sequence token, where the tokenizer adds one.
    pub bos: bool,
    /// Tokens of the text to use: eight tenths to calibrate, one to choose on, one to measure what was chosen.
    pub max_tokens: usize,
}

/// A model, calibrated, in a directory under construction.
pub struct Tuning {
    target: Directory,
    /// Of the model, in it.
    dir: PathBuf,
    dense: Arc<Model>,
    cpu: Arc<Cpu>,
    text: Text,
    inputs: Vec<Method>,
    file: SidecarFile,
}

impl Tuning {
    /// Calibrates the model in `dir` on the text file `text`, for a directory that will be `out`.
    ///
    /// # Errors
    /// As [`sparsify`].
    pub fn new(
        dir: &Path,
        out: &Path,
        text: &Path,
        options: TuneOptions,
        cpu: &Arc<Cpu>,
        progress: impl FnMut(sparsify::Stage, u64, u64),
    ) -> Result<Self> {
        let target = Directory::create(out)?;
        let calibrated = target.path().join("calibrated");
        let TuneOptions { window, bos, max_tokens } = options;
        let input = SparsifyOptions {
            goal: Some(Goal::Active(FRACTIONS[0])),
            settings: FRACTIONS.to_vec(),
            window,
            bos,
            max_tokens,
            ..SparsifyOptions::new("input".parse().expect("input is a selector"), 1)
        };
        let made = sparsify(dir, &calibrated, text, &input, cpu, progress)?;
        let dense = Model::load(&calibrated, Placement::default())?;
        let reading = Reading { max_tokens, window, bos, parts: 2 };
        let text = Text::read(text, &Tokenizer::read(&ModelFiles::open(dir)?)?, &reading, &dense.spec)?;
        let (file, inputs) = (made.file, made.settings);
        Ok(Tuning { target, dir: calibrated, dense: Arc::new(dense), cpu: cpu.clone(), text, inputs, file })
    }

    /// Where the model is while it is measured, and what [`apply`](Self::apply) changes.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Bytes of its weights, as they are stored.
    pub fn weight_bytes(&self) -> u64 {
        self.dense.weights.bytes()
    }

    /// What can be computed of it: everything, what loses nothing, and inputs.
    pub fn lossless(&self) -> &'static [Computed] {
        match is_relu_family(self.dense.spec.activation) {
            true => &[Computed::All, Computed::OpenGates],
            false => &[Computed::All],
        }
    }

    /// Makes the directory run so by default.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn apply(&mut self, setting: Setting) -> Result<()> {
        let layers = self.dense.spec.num_layers;
        let (method, truth) = match setting.computed {
            Computed::All => (None, Vec::new()),
            Computed::OpenGates => {
                let gate: SelectorSpec = "gate".parse().expect("gate is a selector");
                let thresholds = vec![Threshold::Fixed(0.0); layers];
                let found = Found::Neurons { thresholds, rank: 0, look_ahead: false, epochs: 0 };
                (Some(gate.kind().method(found)), vec![0.0; layers])
            }
            Computed::Inputs(at) => (Some(self.inputs[at].clone()), Vec::new()),
        };
        (self.file.method, self.file.true_active_above, self.file.dtype) = (method, truth, setting.dtype);
        let path = self.dir.join(SidecarFile::NAME);
        std::fs::write(&path, pretty(&self.file)).map_err(Error::io(&path))
    }

    /// What a setting costs on the tenth of the text that is to choose on; `progress` is told tokens, done and in all.
    ///
    /// # Errors
    /// If the weights cannot be quantised or read.
    pub fn measure(&mut self, setting: Setting, progress: impl FnMut(usize, usize)) -> Result<Evaluation> {
        self.apply(setting)?;
        self.evaluate(self.text.searched(), progress)
    }

    fn evaluate(&self, ids: &[u32], mut progress: impl FnMut(usize, usize)) -> Result<Evaluation> {
        let window = self.text.window;
        let loaded = Load::new(&self.dir).cpu(self.cpu.clone()).open(|_, _, _| ())?;
        let [mut dense, mut other] = sessions(&loaded, self.dense.clone(), KvOptions::default(), window)?;
        evaluate(&mut dense, &mut other, ids, window, &mut (), |done| progress(done, ids.len()))
    }

    /// Writes the directory so that it runs as `setting`, with what that costs on the tenth of the text that nothing was chosen on,
    /// and what was tried.
    ///
    /// # Errors
    /// If it cannot be measured or written.
    pub fn finish(
        mut self,
        setting: Setting,
        tried: Vec<Trial>,
        progress: impl FnMut(usize, usize),
    ) -> Result<SidecarFile> {
        self.apply(setting)?;
        let evaluation = self.evaluate(self.text.held_out(), progress)?;
        let text = self.text.held_out_name();
        self.file.quality = Quality { text, evaluation, selection: Vec::new(), overlap: Vec::new() };
        self.file.search = tried;
        self.apply(setting)?;
        if !matches!(setting.computed, Computed::Inputs(_)) {
            let norms = self.dir.join(SidecarFile::TENSORS);
            std::fs::remove_file(&norms).map_err(Error::io(&norms))?;
        }
        let files = std::fs::read_dir(&self.dir).map_err(Error::io(&self.dir))?;
        for entry in files {
            let from = entry.map_err(Error::io(&self.dir))?.path();
            let to = self.target.path().join(from.file_name().unwrap_or_default());
            std::fs::rename(&from, &to).map_err(Error::io(&to))?;
        }
        std::fs::remove_dir(&self.dir).map_err(Error::io(&self.dir))?;
        self.target.finish()?;
        Ok(self.file)
    }
}
