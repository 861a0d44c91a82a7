//! What makes and measures models: sparsify, prune, quantize, evaluate. Records come back as the JSON that the commands print.

use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use pyo3::prelude::*;
use serde::Serialize;
use sparrow::SelectorSpec;
use sparrow::internals::checkpoint::config::read_config;
use sparrow::internals::checkpoint::hub;
use sparrow_tools::eval::{as_stored, sessions};
use sparrow_tools::prune::{Allocation, Pattern, PruneOptions, Target};
use sparrow_tools::quantize::QuantizeOptions;
use sparrow_tools::sparsify::{Goal, SparsifyOptions};
use sparrow_tools::text::{first_tokens, windows};
use sparrow_tools::{prune as pruning, quantize as quantizing, sparsify as sparsifying};

use crate::errors::{exception, option};
use crate::guard::{cancel, detached, reporter};
use crate::model::{Model, cpu};
use crate::options;

fn json(record: &impl Serialize) -> PyResult<String> {
    serde_json::to_string(record).map_err(|error| option("record", error))
}

fn parsed<T: FromStr<Err: Display>>(name: &str, text: &str) -> PyResult<T> {
    text.parse().map_err(|error| option(name, error))
}

/// At most one of the ways to say how much.
fn only<T>(given: Vec<(&'static str, Option<T>)>) -> PyResult<Option<T>> {
    let names: Vec<&str> = given.iter().filter(|(_, value)| value.is_some()).map(|(name, _)| *name).collect();
    match names.len() {
        0 | 1 => Ok(given.into_iter().find_map(|(_, value)| value)),
        _ => Err(option(names[1], format!("cannot be given together with {}", names[0]))),
    }
}

/// Calibrates a selector on a text, and writes a directory that runs sparse.
#[pyfunction]
#[pyo3(signature = (
    model, output, *, selector, text, recall=None, target_active=None, target_ppl=None, target_kl=None, rank=0.04,
    look_ahead=false, epochs=0, window=256, bos=true, max_tokens=65_536, threads=None, progress=None,
))]
#[expect(clippy::too_many_arguments, reason = "they are keyword arguments")]
pub fn sparsify(
    py: Python<'_>,
    model: &str,
    output: PathBuf,
    selector: &str,
    text: PathBuf,
    recall: Option<f64>,
    target_active: Option<f64>,
    target_ppl: Option<f64>,
    target_kl: Option<f64>,
    rank: f64,
    look_ahead: bool,
    epochs: usize,
    window: usize,
    bos: bool,
    max_tokens: usize,
    threads: Option<usize>,
    progress: Option<Py<PyAny>>,
) -> PyResult<String> {
    let selector: SelectorSpec = parsed("selector", selector)?;
    let goal = only(vec![
        ("recall", recall.map(Goal::Recall)),
        ("target_active", target_active.map(Goal::Active)),
        ("target_ppl", target_ppl.map(Goal::Perplexity)),
        ("target_kl", target_kl.map(Goal::Divergence)),
    ])?;
    let usable = rank > 0.0 && (rank < 1.0 || rank.fract() == 0.0);
    if !usable {
        return Err(option("rank", format!("must be a whole number, or a fraction between 0 and 1, found {rank}")));
    }
    detached(py, || {
        let dir = hub::resolve(model).map_err(exception)?;
        let intermediate = read_config(&dir.join("config.json")).map_err(exception)?.intermediate_size;
        let rank = if rank < 1.0 { (intermediate as f64 * rank).ceil() } else { rank } as usize;
        let options = SparsifyOptions {
            look_ahead,
            epochs,
            goal,
            window,
            bos,
            max_tokens,
            ..SparsifyOptions::new(selector, rank)
        };
        let mut report = reporter(progress.as_ref());
        let told = |stage: sparsifying::Stage, done, total| report(stage.name(), done, total);
        let made = sparsifying::sparsify(&dir, &output, &text, &options, &cpu(threads), told).map_err(exception)?;
        json(&made.file)
    })
}

/// Sets the weights that matter least to zero, and writes a directory like the one it came from.
#[pyfunction]
#[pyo3(signature = (
    model, output, *, method, text, sparsity=None, pattern=None, allocation="uniform", include=Vec::new(),
    exclude=Vec::new(), window=256, bos=true, max_tokens=65_536, threads=None, progress=None,
))]
#[expect(clippy::too_many_arguments, reason = "they are keyword arguments")]
pub fn prune(
    py: Python<'_>,
    model: &str,
    output: PathBuf,
    method: &str,
    text: PathBuf,
    sparsity: Option<f64>,
    pattern: Option<&str>,
    allocation: &str,
    include: Vec<String>,
    exclude: Vec<String>,
    window: usize,
    bos: bool,
    max_tokens: usize,
    threads: Option<usize>,
    progress: Option<Py<PyAny>>,
) -> PyResult<String> {
    let pattern: Option<Pattern> = options::parse("pattern", pattern)?;
    let target = only(vec![("sparsity", sparsity.map(Target::Sparsity)), ("pattern", pattern.map(Target::Pattern))])?;
    let target = target.ok_or_else(|| option("sparsity", "or pattern must be given"))?;
    let allocation: Allocation = parsed("allocation", allocation)?;
    let options = PruneOptions {
        allocation,
        include,
        exclude,
        window,
        bos,
        max_tokens,
        ..PruneOptions::new(parsed("method", method)?, target)
    };
    let run = |dir: &Path, report: &mut dyn FnMut(&'static str, u64, u64)| {
        let told = |stage: pruning::Stage, done, total| report(stage.name("pruning layers"), done, total);
        json(&pruning::prune(dir, &output, &text, &options, &cpu(threads), told).map_err(exception)?)
    };
    detached(py, || run(&hub::resolve(model).map_err(exception)?, &mut reporter(progress.as_ref())))
}

/// Rounds weights to 4 or 8 bits, and writes them as compressed-tensors.
#[pyfunction]
#[pyo3(signature = (
    model, output, *, method, text, bits=4, average_bits=None, group=None, along="input", zero_points=false, include=Vec::new(),
    exclude=Vec::new(), window=256, bos=true, max_tokens=65_536, threads=None, progress=None,
))]
#[expect(clippy::too_many_arguments, reason = "they are keyword arguments")]
pub fn quantize(
    py: Python<'_>,
    model: &str,
    output: PathBuf,
    method: &str,
    text: PathBuf,
    bits: u32,
    average_bits: Option<f64>,
    group: Option<usize>,
    along: &str,
    zero_points: bool,
    include: Vec<String>,
    exclude: Vec<String>,
    window: usize,
    bos: bool,
    max_tokens: usize,
    threads: Option<usize>,
    progress: Option<Py<PyAny>>,
) -> PyResult<String> {
    let default = QuantizeOptions::new(parsed("method", method)?, bits);
    let (group, along) = (group.or(default.group), parsed("along", along)?);
    let options = QuantizeOptions {
        average_bits,
        group,
        along,
        zero_points,
        include,
        exclude,
        window,
        bos,
        max_tokens,
        ..default
    };
    let run = |dir: &Path, report: &mut dyn FnMut(&'static str, u64, u64)| {
        let told = |stage: quantizing::Stage, done, total| report(stage.name("quantising layers"), done, total);
        json(&quantizing::quantize(dir, &output, &text, &options, &cpu(threads), told).map_err(exception)?)
    };
    detached(py, || run(&hub::resolve(model).map_err(exception)?, &mut reporter(progress.as_ref())))
}

/// Perplexity of a text, and what the model says otherwise than `reference`, or than itself as it is stored and dense.
#[pyfunction]
#[pyo3(signature = (
    model, text, *, reference=None, window=256, bos=true, max_tokens=None, kv_dtype=None, kv_sparsity=None,
    kv_dense_tail=None, kv_sinks=None, progress=None,
))]
#[expect(clippy::too_many_arguments, reason = "they are keyword arguments")]
pub fn evaluate(
    py: Python<'_>,
    model: Py<Model>,
    text: &str,
    reference: Option<Py<Model>>,
    window: usize,
    bos: bool,
    max_tokens: Option<usize>,
    kv_dtype: Option<&str>,
    kv_sparsity: Option<&str>,
    kv_dense_tail: Option<usize>,
    kv_sinks: Option<usize>,
    progress: Option<Py<PyAny>>,
) -> PyResult<String> {
    let kv = options::kv(kv_dtype, kv_sparsity, kv_dense_tail, kv_sinks)?;
    let (model, loaded) = (model.get(), &model.get().loaded);
    detached(py, || {
        let tokenizer = model.tokenizer()?;
        let stored = match &reference {
            Some(reference) => {
                let reference = reference.get();
                reference.tokenizer()?.check_same_vocabulary(tokenizer).map_err(exception)?;
                reference.loaded.model.clone()
            }
            None => as_stored(loaded).map_err(exception)?,
        };
        let context = loaded.model.spec.context_length().min(stored.spec.context_length());
        let window = window.min(context);
        let beginning = if bos { tokenizer.beginning().map_err(exception)? } else { Vec::new() };
        let ids = first_tokens(tokenizer, text, max_tokens.unwrap_or(usize::MAX)).map_err(exception)?;
        let ids = windows(&ids, &beginning, window).map_err(exception)?;
        let [mut dense, mut sparse] = sessions(loaded, stored, kv, window).map_err(exception)?;
        dense.set_cancel(cancel());
        sparse.set_cancel(cancel());
        let mut report = reporter(progress.as_ref());
        let total = ids.len() as u64;
        let told = |done| report("evaluating", done as u64, total);
        let evaluation = sparrow_tools::eval::evaluate(&mut dense, &mut sparse, &ids, window, &mut (), told);
        json(&evaluation.map_err(exception)?)
    })
}
