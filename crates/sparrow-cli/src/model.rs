//! Options and loading that several commands share.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use sparrow::internals::backend::is_relu_family;
use sparrow::internals::checkpoint::ModelFiles;
use sparrow::internals::checkpoint::config::parse_config;
use sparrow::internals::record::SidecarFile;
use sparrow::{Cpu, DType, KvOptions, KvSparsity, Load, LoadStage, Loaded, Placement, SelectorSpec, WeightsFormat};

use crate::output::{Bars, bytes};

/// Which model, and on how many threads.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Model")]
pub struct ModelArgs {
    /// Hugging Face model directory, GGUF file, or hub id org/name[/FILE.gguf][@revision] [default: the bundled demo model]
    #[arg(long, short, value_name = "DIR|FILE|ID")]
    pub model: Option<String>,
    /// Where the weights are: ram, mmap, or cache:FRACTION[,exact|window=N|lru][,prefer=G][,mmap]
    ///
    /// cache keeps only that fraction of each layer's MLP neurons in memory; the rest is read from the file when wanted, past the
    /// page cache (through it with mmap). prefer=2 lets neurons that are not in memory count only where they score twice as high as
    /// others must, which reads fewer and costs quality.
    #[arg(long, default_value_t, value_name = "PLACE", help_heading = "Storage")]
    pub weights: Placement,
    #[command(flatten)]
    pub cpu: CpuArgs,
}

/// On how many threads.
#[derive(Debug, Clone, Copy, clap::Args)]
#[command(next_help_heading = "Machine")]
pub struct CpuArgs {
    /// Threads [default: as many as the system lets this process use]
    #[arg(long, short, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
}

impl CpuArgs {
    /// The kernels and threads to run on.
    pub fn cpu(self) -> Arc<Cpu> {
        Arc::new(Cpu::new(self.threads.map(usize::from)))
    }
}

impl ModelArgs {
    /// The directory of the model that was asked for.
    pub fn dir(&self) -> anyhow::Result<PathBuf> {
        match &self.model {
            Some(model) => Ok(resolve(model)?),
            None => demo_dir(),
        }
    }

    /// How to open that model, as these options say.
    pub fn load(&self) -> anyhow::Result<Load> {
        Ok(Load::new(self.dir()?).weights(self.weights).cpu(self.cpu.cpu()))
    }
}

/// The directory of a model that is named: itself, or the hub's copy of that id.
pub fn resolve(model: &str) -> sparrow::Result<PathBuf> {
    sparrow::internals::checkpoint::hub::resolve(model)
}

/// `--no-bos`.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct BosArg {
    /// Begin windows of text without the beginning-of-sequence token (BOS), although the tokenizer adds one to a text
    #[arg(long)]
    no_bos: bool,
}

impl BosArg {
    /// Whether they begin with it.
    pub fn begins(self) -> bool {
        !self.no_bos
    }
}

/// `--dtype` and `--weights-format`.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Storage")]
pub struct StorageArgs {
    /// Quantise the weights when loading: int8, int4, int4-zero, int4-g128 or int4-g128-zero [default: as they are stored; GGUF files are
    /// decoded to bf16, or to f32 or f16 if you say so]
    #[arg(long)]
    pub dtype: Option<DType>,
    /// Keep matrices as a bitmap and their non-zero elements: [PATTERN=]auto|dense|bitmap[,…]
    ///
    /// The last match decides (bitmap,*.down_proj.*=dense); auto packs what is pruned enough to be faster.
    #[arg(long, default_value_t, value_name = "FORMAT")]
    pub weights_format: WeightsFormat,
}

/// What shows the sparsity of a model that was not sparsified: the gate, where that loses nothing.
pub fn sparse_default(dir: &Path) -> anyhow::Result<Option<SelectorSpec>> {
    let files = ModelFiles::open(dir)?;
    let config = files.json("config.json")?.filter(|_| !files.has(SidecarFile::NAME));
    // Where there is none, opening the model says so.
    let Some(config) = config else { return Ok(None) };
    let spec = parse_config(&files.path_of("config.json"), &config)?;
    Ok(is_relu_family(spec.activation).then(|| "gate".parse().expect("gate is a selector")))
}

/// A number from 0 to 1.
pub fn fraction(text: &str) -> Result<f64, String> {
    let value = text.parse().ok().filter(|value| (0.0..=1.0).contains(value));
    value.ok_or_else(|| "must be a number from 0 to 1".to_owned())
}

/// How keys and values are cached.
#[derive(Debug, Clone, Copy, clap::Args)]
#[command(next_help_heading = "Cache")]
pub struct KvArg {
    /// Element type of cached keys and values: f32, f16, bf16 or int8 [default: that of the weights, bf16 for quantised ones]
    #[arg(long, value_parser = kv_dtype)]
    pub kv_dtype: Option<DType>,
    /// Drop this fraction of older keys and values: k=FRACTION,v=FRACTION, or one for both [default: all stay dense]
    ///
    /// The smallest go, per head and block of 64 tokens, of tokens older than the tail.
    #[arg(long, value_name = "FRACTIONS")]
    pub kv_sparsity: Option<KvSparsity>,
    /// With --kv-sparsity: last tokens that stay dense
    #[arg(long, value_name = "N", default_value_t = KvOptions::default().dense_tail, requires = "kv_sparsity", hide_short_help = true)]
    pub kv_dense_tail: usize,
    /// With --kv-sparsity: first tokens that stay dense
    #[arg(long, value_name = "N", default_value_t = KvOptions::default().sinks, requires = "kv_sparsity", hide_short_help = true)]
    pub kv_sinks: usize,
}

impl KvArg {
    /// The options of a session.
    pub fn options(self) -> KvOptions {
        let KvArg { kv_dtype, kv_sparsity, kv_dense_tail, kv_sinks } = self;
        KvOptions { dtype: kv_dtype, sparsity: kv_sparsity, dense_tail: kv_dense_tail, sinks: kv_sinks }
    }
}

/// An element type that caches can have, by its name.
pub fn kv_dtype(name: &str) -> Result<DType, String> {
    match name.parse() {
        Ok(dtype @ (DType::F32 | DType::F16 | DType::BF16 | DType::I8)) => Ok(dtype),
        _ => Err("must be f32, f16, bf16 or int8".to_owned()),
    }
}

impl StorageArgs {
    /// Adds these options.
    pub fn of(&self, load: Load) -> Load {
        load.dtype(self.dtype).format(self.weights_format.clone())
    }
}

/// Opens a model, with bars for what takes long.
pub fn open(load: Load) -> anyhow::Result<Loaded> {
    let mut bars = Bars::new(LoadStage::name, |stage| stage != LoadStage::Compressing);
    let loaded = load.open(|stage, done, total| bars.show(stage, done, total))?;
    bars.clear();
    if let Some(decoded) = &loaded.model.decoded {
        let (from, to) = (decoded.from.join(", "), decoded.to);
        note!("note: weights in {from} are decoded to {to}, which takes {} of memory", bytes(decoded.bytes));
    }
    Ok(loaded)
}

/// `--selector`.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Sparsity")]
pub struct SelectorArg {
    #[arg(
        long,
        short,
        help = format!("What to compute: {} [default: what the model was sparsified for, else dense]", SelectorSpec::usage()),
        long_help = format!("What to compute: {}\n{}\n[default: what the model was sparsified for, else dense]", SelectorSpec::usage(), SelectorSpec::help())
    )]
    pub selector: Option<SelectorSpec>,
}

/// Where the bundled demo model is: `assets/demo` of the source tree or beside the installed binary.
pub fn demo_dir() -> anyhow::Result<PathBuf> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../assets/demo");
    let binary = std::env::current_exe().ok();
    let beside = binary.iter().flat_map(|exe| exe.ancestors().skip(1)).map(|dir| dir.join("assets/demo"));
    let mut candidates = std::iter::once(PathBuf::from("assets/demo")).chain(beside).chain([source]);
    let found = candidates.find(|dir| dir.join("config.json").is_file());
    found.context("the bundled demo model (assets/demo) is not here: pass --model DIR")
}
