//! Ways of running one model, measured on text that nothing was calibrated on, and the one that was chosen, written as a directory.

use std::ffi::OsStr;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sparrow::internals::backend::{Threshold, is_relu_family};
use sparrow::internals::checkpoint::{Checkpoint, Directory, ModelFiles, fingerprint, pretty};
use sparrow::internals::record::{Evaluation, Quality, SidecarFile, Trial};
use sparrow::internals::select::{Found, Goal, Method};
use sparrow::{Cpu, DType, Error, KvOptions, Load, Model, Placement, Result, SelectorSpec, Tokenizer};

use crate::eval::{evaluate, sessions};
use crate::quantize::{self, QuantizeOptions, quantize};
use crate::sparsify::{self, SparsifyOptions, sparsify, write_weights};
use crate::text::{Reading, Text};

/// Fractions of the layers' weights that `input` may keep, most first.
pub const FRACTIONS: [f64; 5] = [0.9, 0.8, 0.7, 0.6, 0.5];

/// How weights of four bits are rounded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rounding {
    /// Each to the nearest.
    Nearest,
    /// So that outputs err least, by GPTQ.
    Gptq,
    /// The same, to eight bits where four cost most: so many tenths of a bit for a weight on average, scales included.
    Mixed(u32),
}

impl Rounding {
    /// Bits of a weight on average, where some have more than others.
    pub fn average_bits(self) -> Option<f64> {
        match self {
            Rounding::Mixed(tenths) => Some(f64::from(tenths) / 10.0),
            Rounding::Nearest | Rounding::Gptq => None,
        }
    }
}

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
    /// How those of four bits are rounded.
    pub rounding: Rounding,
    /// What is computed of them.
    pub computed: Computed,
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.dtype, self.rounding) {
            (None, _) => f.write_str("as stored")?,
            (Some(dtype), Rounding::Nearest) => write!(f, "{dtype}")?,
            (Some(dtype), Rounding::Gptq) => write!(f, "gptq {dtype}")?,
            (Some(dtype), Rounding::Mixed(tenths)) => {
                write!(f, "gptq {dtype} and int8, {}.{} bits", tenths / 10, tenths % 10)?
            }
        }
        match self.computed {
            Computed::All => Ok(()),
            Computed::OpenGates => f.write_str(", gate"),
            Computed::Inputs(at) => write!(f, ", input {:.0} %", FRACTIONS[at] * 100.0),
        }
    }
}

impl Setting {
    /// The selector that computes so.
    pub fn selector(self) -> SelectorSpec {
        let name = match self.computed {
            Computed::All => "dense",
            Computed::OpenGates => "gate",
            Computed::Inputs(_) => "input",
        };
        name.parse().expect("these are selectors")
    }
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
    /// The model as it was given: what computes everything runs from it.
    source: PathBuf,
    /// With neurons in rows, in the target: what selects runs from it.
    calibrated: PathBuf,
    dense: Arc<Model>,
    cpu: Arc<Cpu>,
    text: Text,
    text_file: PathBuf,
    options: TuneOptions,
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
        let dense = Model::load(dir, Placement::default())?;
        let reading = Reading { max_tokens, window, bos, parts: 2 };
        let text_file = text.to_owned();
        let text = Text::read(text, &Tokenizer::read(&ModelFiles::open(dir)?)?, &reading, &dense.spec)?;
        let (file, inputs) = (made.file, made.settings);
        let (source, dense, cpu) = (dir.to_owned(), Arc::new(dense), cpu.clone());
        Ok(Tuning { target, source, calibrated, dense, cpu, text, text_file, options, inputs, file })
    }

    /// Where a model is that runs so, with its type and its selector named, once the setting is [applied](Self::apply).
    pub fn dir(&self, setting: Setting) -> PathBuf {
        match setting.computed {
            Computed::All => self.rounded(setting.rounding).unwrap_or_else(|| self.source.clone()),
            Computed::OpenGates | Computed::Inputs(_) => self.calibrated.clone(),
        }
    }

    /// Where it is rounded so, in the target; none: while it is loaded.
    fn rounded(&self, rounding: Rounding) -> Option<PathBuf> {
        let name = match rounding {
            Rounding::Nearest => return None,
            Rounding::Gptq => "rounded".to_owned(),
            Rounding::Mixed(tenths) => format!("rounded-{tenths}"),
        };
        Some(self.target.path().join(name))
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

    /// Rounds the model to four bits, on the tokens that inputs were calibrated on. To the nearest there is nothing to do.
    ///
    /// # Errors
    /// As [`quantize`].
    pub fn round(&self, rounding: Rounding, progress: impl FnMut(quantize::Stage, u64, u64)) -> Result<()> {
        let Some(out) = self.rounded(rounding) else { return Ok(()) };
        let TuneOptions { window, bos, .. } = self.options;
        // A tenth of what it is given is not calibrated on.
        let max_tokens = self.text.calibration(true).tokens * 10 / 9;
        let average_bits = rounding.average_bits();
        let usual = QuantizeOptions::new(quantize::Method::Gptq, 4);
        let options = QuantizeOptions { average_bits, window, bos, max_tokens, ..usual };
        quantize(&self.source, &out, &self.text_file, &options, &self.cpu, progress).map(|_| ())
    }

    /// Makes the record say so.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn apply(&mut self, setting: Setting) -> Result<()> {
        let layers = self.dense.spec.num_layers;
        let (method, truth) = match setting.computed {
            Computed::All => (None, Vec::new()),
            Computed::OpenGates => {
                let thresholds = vec![Threshold::Fixed(0.0); layers];
                let found = Found::Neurons { thresholds, rank: 0, look_ahead: false, epochs: 0, weighted: false };
                (Some(setting.selector().kind().method(found)), vec![0.0; layers])
            }
            Computed::Inputs(at) => (Some(self.inputs[at].clone()), Vec::new()),
        };
        (self.file.method, self.file.true_active_above, self.file.dtype) = (method, truth, setting.dtype);
        let path = self.calibrated.join(SidecarFile::NAME);
        std::fs::write(&path, pretty(&self.file)).map_err(Error::io(&path))
    }

    /// What a setting costs on the tenth of the text that is to choose on; `progress` is told tokens, done and in all.
    ///
    /// # Errors
    /// If the weights cannot be quantised or read.
    pub fn measure(&mut self, setting: Setting, progress: impl FnMut(usize, usize)) -> Result<Evaluation> {
        self.apply(setting)?;
        self.evaluate(setting, self.text.searched(), progress)
    }

    fn evaluate(&self, setting: Setting, ids: &[u32], mut progress: impl FnMut(usize, usize)) -> Result<Evaluation> {
        let window = self.text.window;
        let load = Load::new(self.dir(setting)).dtype(setting.dtype).selector(setting.selector());
        let loaded = load.cpu(self.cpu.clone()).open(|_, _, _| ())?;
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
        let evaluation = self.evaluate(setting, self.text.held_out(), progress)?;
        let text = self.text.held_out_name();
        self.file.quality = Quality { text, evaluation, selection: Vec::new(), overlap: Vec::new() };
        self.file.search = tried;
        match (setting.computed, self.rounded(setting.rounding)) {
            (Computed::All, Some(rounded)) => self.keep_rounded(&rounded)?,
            (Computed::All, None) => self.write_as_given()?,
            (Computed::OpenGates | Computed::Inputs(_), _) => self.keep_calibrated(setting)?,
        }
        // A model is files: the directories in it were made on the way.
        let target = self.target.path();
        for entry in std::fs::read_dir(target).map_err(Error::io(target))? {
            let made = entry.map_err(Error::io(target))?.path();
            if made.is_dir() {
                std::fs::remove_dir_all(&made).map_err(Error::io(&made))?;
            }
        }
        self.target.finish()?;
        Ok(self.file)
    }

    /// Writes the model as it was given, beside a record.
    fn write_as_given(&mut self) -> Result<()> {
        let files = ModelFiles::open(&self.source)?;
        files.copy_companions(&self.target, SidecarFile::NAME)?;
        write_weights(&self.target, &files.checkpoint()?, None, &self.cpu, &mut |_, _, _| ())?;
        self.file.fingerprint = fingerprint(&Checkpoint::open(self.target.path())?);
        self.target.text(SidecarFile::NAME, &pretty(&self.file))
    }

    /// Makes the rounded directory the target, with a record.
    fn keep_rounded(&mut self, rounded: &Path) -> Result<()> {
        self.move_to_target(rounded, |_| true)?;
        self.file.fingerprint = fingerprint(&Checkpoint::open(self.target.path())?);
        self.target.text(SidecarFile::NAME, &pretty(&self.file))
    }

    /// Moves the files of a directory that are `wanted`.
    fn move_to_target(&self, dir: &Path, wanted: impl Fn(&OsStr) -> bool) -> Result<()> {
        for entry in std::fs::read_dir(dir).map_err(Error::io(dir))? {
            let from = entry.map_err(Error::io(dir))?.path();
            let name = from.file_name().unwrap_or_default();
            if wanted(name) {
                let to = self.target.path().join(name);
                std::fs::rename(&from, &to).map_err(Error::io(&to))?;
            }
        }
        Ok(())
    }

    /// Makes the calibrated directory the target.
    fn keep_calibrated(&mut self, setting: Setting) -> Result<()> {
        self.apply(setting)?;
        // Only inputs have tensors of their own.
        let inputs = matches!(setting.computed, Computed::Inputs(_));
        self.move_to_target(&self.calibrated, |name| name != SidecarFile::TENSORS || inputs)
    }
}
