//! From a dense model directory to a sparse one: calibrate, measure, write.

use std::borrow::Cow;
use std::path::Path;
use std::sync::Arc;

use sha2::{Digest, Sha256};
use sparrow_kernels::{DType, encode, transpose};

use crate::backend::Cpu;
use crate::checkpoint::{Checkpoint, Directory, Pending, file_dtype, fingerprint, hex, predictor_tensors, pretty};
use crate::error::{Error, Result};
use crate::eval::{Evaluation, evaluate};
use crate::model::weights::NEURON_MAJOR;
use crate::model::{Model, Session, SessionOptions};
use crate::sparsity::{
    ActiveScores, CalibrationText, Moments, Observer, Predictor, Quality, Recall, Selector, SelectorSpec, SidecarFile,
    Threshold, deciding, is_relu_family,
};
use crate::tokenizer::Tokenizer;

/// Share of the text's tokens, at the end, that calibration does not see: the written quality is measured there.
const HELD_OUT: f64 = 0.1;

/// What [`sparsify`] should make.
#[derive(Debug, Clone)]
pub struct SparsifyOptions {
    /// `gate` or `lowrank`; without a rule thresholds are calibrated.
    pub selector: SelectorSpec,
    /// Rank of low-rank predictors.
    pub rank: usize,
    /// Calibrated thresholds of `lowrank` let this fraction of the truly active neurons through.
    pub recall: f64,
    /// Calibrated thresholds of `gate` keep this fraction of neurons, where the activation has no exact zeros.
    pub target_active: f64,
    /// Tokens per calibration window.
    pub window: usize,
    /// Tokens of the text to use, held-out tenth included.
    pub max_tokens: usize,
}

/// A stage of the work, for progress bars.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Reading the text through the model.
    Observing,
    /// Computing predictors, by layer.
    Predicting,
    /// Scoring calibration text with the predictors.
    Thresholding,
    /// Measuring quality on held-out text.
    Evaluating,
    /// Writing weights.
    Writing,
}

/// Calibrates the model in `dir` on the text file `text` and writes it, with its sidecar, as the new directory `out`.
/// `progress(stage, done, total)` is called as the work goes on.
///
/// # Errors
/// If the model or text cannot be read, the text is too short, an option is out of range, or `out` exists or cannot be
/// written. Nothing is left behind on an error.
pub fn sparsify(
    dir: &Path,
    out: &Path,
    text: &Path,
    options: &SparsifyOptions,
    cpu: &Arc<Cpu>,
    mut progress: impl FnMut(Stage, u64, u64),
) -> Result<SidecarFile> {
    let directory = Directory::create(out)?;
    let model = Model::load(dir)?;
    if model.sidecar.is_some() {
        return Err(Error::option(
            "model",
            format!("{} is already sparsified: start from the original", dir.display()),
        ));
    }
    let (calibration, mut ids) = read_text(text, &Tokenizer::load(dir)?)?;
    ids.truncate(options.max_tokens);
    let window = options.window.min(model.spec.context_length());
    let held_out = ids.len() - ((ids.len() as f64 * HELD_OUT) as usize).max(2).min(ids.len());
    if window < 2 || held_out < window {
        let message = format!("has {} tokens: too few for one window of {window} and a held-out tenth", ids.len());
        return Err(Error::option("text", message));
    }
    let calibration = CalibrationText { tokens: held_out, ..calibration };

    let model = Arc::new(model);
    let calibrated = calibrate(&model, cpu, &ids[..held_out], window, options, &mut progress)?;
    let mut model = Arc::into_inner(model).expect("calibration is done with the model");
    model.weights.make_neuron_major(&cpu.compute)?;
    let model = Arc::new(model);
    let (evaluation, selection) = measure(&model, cpu, &ids[held_out..], window, &calibrated, &mut progress)?;

    directory.copy_companions(dir)?;
    write_weights(&directory, dir, cpu, &mut progress)?;
    let rank = match calibrated.predictors.first() {
        None => None,
        Some(predictor) => {
            write_predictors(&directory, &calibrated.predictors)?;
            Some(predictor.rank())
        }
    };
    let file = SidecarFile {
        format_version: SidecarFile::VERSION,
        fingerprint: fingerprint(&Checkpoint::open(directory.path())?),
        selector: if rank.is_some() { "lowrank" } else { "gate" }.into(),
        rank,
        thresholds: calibrated.thresholds,
        true_active_above: calibrated.truth,
        quality: Quality { text: format!("held-out tenth of {}", calibration.file), evaluation, selection },
        calibration,
    };
    directory.text(SidecarFile::NAME, &pretty(&file))?;
    directory.finish()?;
    Ok(file)
}

struct Calibrated {
    /// Empty for the gate selector.
    predictors: Vec<Predictor>,
    thresholds: Vec<Threshold>,
    /// `|act(gate)|` above which a neuron is truly active.
    truth: Vec<f32>,
}

impl Calibrated {
    fn selector(&self) -> Selector {
        match self.predictors.is_empty() {
            true => Selector::gate(self.thresholds.clone()),
            false => Selector::low_rank(self.predictors.clone(), self.thresholds.clone()),
        }
    }
}

fn calibrate(
    model: &Arc<Model>,
    cpu: &Arc<Cpu>,
    ids: &[u32],
    window: usize,
    options: &SparsifyOptions,
    progress: &mut impl FnMut(Stage, u64, u64),
) -> Result<Calibrated> {
    let (spec, layers) = (&model.spec, &model.weights.layers);
    for (option, value) in [("recall", options.recall), ("target_active", options.target_active)] {
        if !(value > 0.0 && value <= 1.0) {
            return Err(Error::option(option, format!("must be above 0 and at most 1, found {value}")));
        }
    }
    let rule = match options.selector {
        SelectorSpec::Gate(rule) | SelectorSpec::LowRank(rule) => rule,
        other => return Err(Error::option("selector", format!("must be gate or lowrank, found {other}"))),
    };
    let mut moments = Moments::new(cpu, layers, spec.activation, spec.hidden_size);
    observe(model, cpu, ids, window, &mut moments, |done, all| progress(Stage::Observing, done, all))?;
    let truth: Vec<f32> = match is_relu_family(spec.activation) {
        true => vec![0.0; layers.len()],
        false => (0..layers.len()).map(|l| moments.gate_quantile(l, 1.0 - options.target_active)).collect(),
    };
    if let SelectorSpec::Gate(_) = options.selector {
        let thresholds = truth.iter().map(|&t| rule.unwrap_or(Threshold::Fixed(t))).collect();
        return Ok(Calibrated { predictors: Vec::new(), thresholds, truth });
    }

    let mut predictors = Vec::with_capacity(layers.len());
    for (l, layer) in layers.iter().enumerate() {
        progress(Stage::Predicting, l as u64, layers.len() as u64);
        predictors.push(Predictor::closed_form(deciding(layer), &moments.covariance(l), options.rank)?);
    }
    drop(moments);
    let thresholds = match rule {
        Some(rule) => vec![rule; layers.len()],
        None => {
            let mut scores = ActiveScores::new(cpu, layers, spec.activation, &predictors, &truth);
            observe(model, cpu, ids, window, &mut scores, |done, all| progress(Stage::Thresholding, done, all))?;
            (0..layers.len()).map(|l| Threshold::Fixed(scores.threshold(l, options.recall))).collect()
        }
    };
    Ok(Calibrated { predictors, thresholds, truth })
}

/// Runs the dense model over windows of `ids`.
fn observe(
    model: &Arc<Model>,
    cpu: &Arc<Cpu>,
    ids: &[u32],
    window: usize,
    observer: &mut dyn Observer,
    mut progress: impl FnMut(u64, u64),
) -> Result<()> {
    let options = SessionOptions { sequences: 1, capacity: window, kv_dtype: None };
    let mut session = Session::new(model.clone(), cpu.clone(), Selector::dense(), options)?;
    for (w, ids_of_window) in ids.chunks(window).enumerate() {
        session.truncate(0, 0);
        session.observe(0, ids_of_window, observer)?;
        progress((w * window + ids_of_window.len()) as u64, ids.len() as u64);
    }
    Ok(())
}

fn measure(
    model: &Arc<Model>,
    cpu: &Arc<Cpu>,
    ids: &[u32],
    window: usize,
    calibrated: &Calibrated,
    progress: &mut impl FnMut(Stage, u64, u64),
) -> Result<(Evaluation, Vec<crate::sparsity::PredictorQuality>)> {
    let options = SessionOptions { sequences: 1, capacity: window, kv_dtype: None };
    let mut dense = Session::new(model.clone(), cpu.clone(), Selector::dense(), options)?;
    let mut sparse = Session::new(model.clone(), cpu.clone(), calibrated.selector(), options)?;
    let mut recall = Recall::new(cpu, &model.weights.layers, model.spec.activation, &calibrated.truth);
    let done = |done| progress(Stage::Evaluating, done as u64, ids.len() as u64);
    let evaluation = evaluate(&mut dense, &mut sparse, ids, window, &mut recall, done)?;
    Ok((evaluation, recall.per_layer()))
}

/// Tokens of the calibration text, and what identifies it.
fn read_text(path: &Path, tokenizer: &Tokenizer) -> Result<(CalibrationText, Vec<u32>)> {
    let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
    let ids = tokenizer.encode(&text, false)?;
    let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Ok((CalibrationText { file, sha256: hex(&Sha256::digest(text.as_bytes())), tokens: ids.len() }, ids))
}

/// Every tensor of the model as it is, except the down projections, which become neuron-major.
fn write_weights(
    directory: &Directory,
    from: &Path,
    cpu: &Cpu,
    progress: &mut impl FnMut(Stage, u64, u64),
) -> Result<()> {
    const SHARD_BYTES: usize = 4 << 30;
    let checkpoint = Checkpoint::open(from)?;
    let mut tensors = Vec::new();
    for info in checkpoint.tensors() {
        let bytes = checkpoint.bytes(&info.name).expect("listed tensors exist");
        let len = bytes.len();
        tensors.push(match (info.name.strip_suffix("mlp.down_proj.weight"), info.matrix()) {
            (Some(prefix), Some(matrix)) => {
                let (dtype, [rows, cols]) = matrix;
                let view = sparrow_kernels::Matrix::new(dtype, rows, cols, bytes);
                let transposed = move || {
                    let mut out = vec![0; len];
                    transpose(&cpu.compute, view, &mut out);
                    Cow::Owned(out)
                };
                let name = format!("{prefix}mlp.down_proj.{NEURON_MAJOR}");
                Pending { name, dtype: info.dtype, shape: vec![cols, rows], len, bytes: Box::new(transposed) }
            }
            _ => {
                let bytes = Box::new(move || Cow::Borrowed(bytes));
                Pending { name: info.name, dtype: info.dtype, shape: info.shape, len, bytes }
            }
        });
    }
    let total = tensors.iter().map(|t| t.len as u64).sum();
    let mut done = 0;
    progress(Stage::Writing, 0, total);
    directory.shards(tensors, SHARD_BYTES, |bytes| {
        done += bytes;
        progress(Stage::Writing, done, total);
    })
}

fn write_predictors(directory: &Directory, predictors: &[Predictor]) -> Result<()> {
    let mut tensors = Vec::new();
    for (layer, predictor) in predictors.iter().enumerate() {
        let (a, b) = predictor_tensors(layer);
        for (name, tensor) in [(a, &predictor.a), (b, &predictor.b)] {
            tensors.push(Pending {
                name,
                dtype: file_dtype(tensor.dtype()),
                shape: vec![tensor.rows(), tensor.cols()],
                len: tensor.bytes().len(),
                bytes: Box::new(move || Cow::Borrowed(tensor.bytes())),
            });
        }
    }
    directory.safetensors(SidecarFile::TENSORS, tensors)
}

/// Writes a checkpoint of that shape with random weights (the same every time), in shards: for comparing engines.
/// `progress(done, total)` is in bytes.
///
/// # Errors
/// If the shape is not known, or `out` exists or cannot be written.
pub fn synthesize(shape: &str, dtype: DType, out: &Path, mut progress: impl FnMut(u64, u64)) -> Result<()> {
    const SHARD_BYTES: usize = 1 << 30;
    let config = crate::shapes::config(shape, dtype)?;
    let directory = Directory::create(out)?;
    let mut tensors = Vec::new();
    for (name, dimensions) in crate::shapes::parameters(&crate::shapes::spec(shape)?)? {
        let len = dimensions.iter().product::<usize>() * dtype.row_bytes(1);
        let (tensor, cols) = (name.clone(), dimensions.get(1).copied());
        let bytes = move || {
            let mut out = vec![0; len];
            match cols {
                Some(cols) => crate::shapes::fill_random(&tensor, dtype, cols, &mut out),
                None => encode(dtype, &vec![1.0; len / dtype.row_bytes(1)], &mut out),
            }
            Cow::Owned(out)
        };
        tensors.push(Pending { name, dtype: file_dtype(dtype), shape: dimensions, len, bytes: Box::new(bytes) });
    }
    let total = tensors.iter().map(|t| t.len as u64).sum();
    let mut done = 0;
    progress(0, total);
    directory.text("config.json", &pretty(&config))?;
    directory.text("generation_config.json", &pretty(&serde_json::json!({ "bos_token_id": 1, "eos_token_id": 2 })))?;
    directory.shards(tensors, SHARD_BYTES, |bytes| {
        done += bytes;
        progress(done, total);
    })?;
    directory.finish()
}
