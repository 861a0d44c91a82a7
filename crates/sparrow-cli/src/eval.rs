//! `sparrow eval`.

use std::path::PathBuf;

use anyhow::Context;
use serde::Serialize;
use sparrow::internals::backend::is_relu_family;
use sparrow::internals::record::{Evaluation, PredictorQuality};
use sparrow::{DType, KvOptions, Load, Placement, Selector, SelectorSpec};
use sparrow_tools::answers::{Answers, Questions};
use sparrow_tools::eval::{as_stored, evaluate, sessions};
use sparrow_tools::observe::Recall;
use sparrow_tools::text::{first_tokens, windows};
use sparrow_tools::traffic::weight_bytes_per_token;

use crate::model::{BosArg, KvArg, ModelArgs, SelectorArg, StorageArgs, demo_dir, open, resolve, sparse_default};
use crate::output::{Format, LayersArg, by_layer, bytes, json, percent, progress, table};

/// Quality of a selector, of quantised weights or of a quantised or sparse cache, against the dense model as it is stored; or of a
/// pruned model against the one it was made from.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    selector: SelectorArg,
    #[command(flatten)]
    storage: StorageArgs,
    #[command(flatten)]
    kv: KvArg,
    /// Compare with this model, dense and as it is stored [default: with the model itself]
    ///
    /// A directory or hub id with the same tokenizer.
    #[arg(long, value_name = "DIR|ID", help_heading = "Measurement")]
    reference: Option<String>,
    /// UTF-8 text to predict [default: the demo model's sample.txt]
    #[arg(long, value_name = "FILE", help_heading = "Measurement")]
    text: Option<PathBuf>,
    /// Tokens per window, the beginning-of-sequence token included; each is scored on its own, without its first token
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(2..), help_heading = "Measurement")]
    window: u32,
    #[command(flatten, next_help_heading = "Measurement")]
    bos: BosArg,
    /// Stop after this many tokens of the text
    #[arg(long, value_name = "N", help_heading = "Measurement")]
    max_tokens: Option<usize>,
    /// Also count exact answers to questions: JSON lines {"prompt": "2 + 2 =", "answer": " 4"}
    ///
    /// An answer is exact if greedy generation would write it.
    #[arg(long, value_name = "FILE.jsonl", help_heading = "Measurement")]
    answers: Option<PathBuf>,
    /// Form of the output
    #[arg(long, value_enum, default_value_t, help_heading = "Output")]
    format: Format,
    #[command(flatten)]
    layers: LayersArg,
}

#[derive(Serialize)]
struct Report {
    model: String,
    /// Where it is another model.
    reference: Option<String>,
    text: String,
    window: usize,
    /// Whether each window begins with a beginning-of-sequence token.
    bos: bool,
    selector: String,
    dtype: String,
    kv_dtype: String,
    kv_sparsity: Option<String>,
    /// Of a window's cache.
    kv_bytes: usize,
    dense_kv_bytes: usize,
    /// Weights that a decoded token reads.
    weight_bytes_per_token: f64,
    /// And the cache, at the end of a window.
    bytes_per_token: f64,
    dense_bytes_per_token: f64,
    /// Read into the weight cache for a token, where neurons in it are preferred.
    store_bytes_per_token: Option<f64>,
    #[serde(flatten)]
    evaluation: Evaluation,
    selection: Option<Vec<PredictorQuality>>,
    answers: Option<Answers>,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    let dir = args.model.dir()?;
    let text_path = match args.text {
        Some(path) => path,
        None => demo_dir()?.join("sample.txt"),
    };
    let text = std::fs::read_to_string(&text_path).with_context(|| text_path.display().to_string())?;
    let kv = args.kv.options();
    let reference = args.reference.as_deref().map(resolve).transpose()?;
    let unchanged = reference.is_none() && args.storage.dtype.is_none() && kv == KvOptions::default();
    // Comparing dense with dense would say nothing.
    let default = if unchanged && args.selector.selector.is_none() { sparse_default(&dir)? } else { None };
    let load = args.storage.of(args.model.load()?);
    let loaded = open(load.selector(args.selector.selector.or(default)))?;
    let (model, cpu, tokenizer) = (&loaded.model, &loaded.cpu, loaded.tokenizer()?);
    let beginning = if args.bos.begins() { tokenizer.beginning()? } else { Vec::new() };
    let ids = first_tokens(tokenizer, &text, args.max_tokens.unwrap_or(usize::MAX))?;

    // Truth for recall: what calibration called active, or exact zeros. It takes every gate, which a cache does not have.
    let truth = match &model.sidecar {
        _ if matches!(args.model.weights, Placement::Cache(_)) => None,
        Some(sidecar) if !sidecar.file.true_active_above.is_empty() => Some(sidecar.file.true_active_above.clone()),
        _ => is_relu_family(model.spec.activation).then(|| vec![0.0; model.spec.num_layers]),
    };
    let truth = truth.filter(|_| loaded.selector.selects_neurons());
    let stored = match &reference {
        Some(reference) => {
            let reference = open(Load::new(reference).selector(SelectorSpec::dense()).cpu(cpu.clone()))?;
            reference.tokenizer()?.check_same_vocabulary(tokenizer)?;
            reference.model
        }
        None => as_stored(&loaded)?,
    };
    let context = model.spec.context_length().min(stored.spec.context_length());
    let window = context.min(args.window as usize);
    let ids = windows(&ids, &beginning, window)?;
    let as_generation = kv == KvOptions::default();
    let questions = args.answers.as_deref().map(|path| Questions::read(path, tokenizer, &beginning)).transpose()?;
    let [mut dense, mut sparse] = sessions(&loaded, stored.clone(), kv, window)?;
    let mut recall = truth.as_ref().map(|truth| Recall::new(cpu, &model.weights.layers, model.spec.activation, truth));
    let bar = progress("evaluating", ids.len() as u64, false);
    let evaluation =
        evaluate(&mut dense, &mut sparse, &ids, window, &mut recall, |done| bar.set_position(done as u64))?;
    bar.finish_and_clear();
    let prefers = matches!(args.model.weights, Placement::Cache(cache) if cache.prefer > 1.0);
    let store_bytes = prefers.then(|| sparse.stats().store_bytes as f64 / sparse.stats().steps.max(1) as f64);
    let answers = match &questions {
        Some(questions) => {
            let [mut dense, mut sparse] = sessions(&loaded, stored, kv, questions.longest())?;
            let bar = progress("asking", questions.len() as u64, false);
            let answers = questions.ask(&mut dense, &mut sparse, |done| bar.set_position(done as u64))?;
            bar.finish_and_clear();
            Some(answers)
        }
        None => None,
    };

    let active = &evaluation.active_fraction_per_layer;
    let weight_bytes = weight_bytes_per_token(model, &loaded.selector, active);
    let whole = vec![1.0; dense.model().spec.num_layers];
    let dense_weight_bytes = weight_bytes_per_token(dense.model(), &Selector::Dense, &whole);
    // Of the cache that generation takes, also where another is evaluated.
    let dense_kv_bytes = dense.kv_bytes() / DType::F32.row_bytes(1) * dense.model().default_kv_dtype().row_bytes(1);
    let kv_bytes = if as_generation { dense_kv_bytes } else { sparse.kv_bytes() };
    let report = Report {
        model: dir.display().to_string(),
        reference: reference.map(|dir| dir.display().to_string()),
        text: text_path.display().to_string(),
        window,
        bos: !beginning.is_empty(),
        selector: loaded.selector_spec.to_string(),
        dtype: model.weights.dtypes(),
        kv_dtype: sparse.kv().dtype.unwrap_or(model.default_kv_dtype()).to_string(),
        kv_sparsity: kv.sparsity.map(|sparsity| sparsity.to_string()),
        kv_bytes,
        dense_kv_bytes,
        weight_bytes_per_token: weight_bytes,
        bytes_per_token: weight_bytes + kv_bytes as f64,
        dense_bytes_per_token: dense_weight_bytes + dense_kv_bytes as f64,
        store_bytes_per_token: store_bytes,
        evaluation,
        selection: recall.map(|r| r.per_layer()),
        answers,
    };
    match args.format {
        Format::Json => json(&report),
        Format::Table => print(&report, args.layers.layers),
    }
}

fn print(report: &Report, layers: bool) -> anyhow::Result<()> {
    let e = &report.evaluation;
    if layers {
        print_layers(report)?;
    }
    let begun = if report.bos { ", each with a beginning-of-sequence token" } else { "" };
    outln!("{} on {}, {} tokens predicted in windows of {}{begun}", report.model, report.text, e.tokens, report.window);
    let change = e.perplexity / e.dense_perplexity - 1.0;
    let row = |name: &str, values: [String; 6]| std::iter::once(name.to_owned()).chain(values).collect();
    let reference = report.reference.as_ref().map_or(String::new(), |dir| format!("{dir}, "));
    let dense = row(
        &format!("{reference}dense, as stored"),
        [
            format!("{:.4}", e.dense_perplexity),
            "0".into(),
            "0".into(),
            percent(1.0),
            percent(1.0),
            bytes(report.dense_bytes_per_token as u64),
        ],
    );
    let pruned = report.kv_sparsity.as_ref().map_or(String::new(), |sparsity| format!(" {sparsity}"));
    let compared = format!("{}, weights {}, cache {}{pruned}", report.selector, report.dtype, report.kv_dtype);
    let sparse = row(
        &compared,
        [
            format!("{:.4} ({:+.2} %)", e.perplexity, change * 100.0),
            format!("{:.2e}", e.kl_mean),
            format!("{:.2e}", e.kl_p99),
            format!("{:.2} %", e.top1_agreement * 100.0),
            percent(e.active_fraction),
            bytes(report.bytes_per_token as u64),
        ],
    );
    if let Some(bars) = by_layer(&e.active_fraction_per_layer) {
        outln!("active by layer {bars}");
    }
    if let Some(a) = &report.answers {
        outln!("exact answers to {} questions: dense {}, {} {}", a.questions, a.dense_right, report.selector, a.right);
    }
    if let Some(stored) = report.store_bytes_per_token {
        outln!("read into the cache for a token: {}", bytes(stored as u64));
    }
    table(
        &["selector", "perplexity", "KL mean", "KL p99", "same top token", "active", "read per token"],
        [dense, sparse],
    )
}

fn print_layers(report: &Report) -> anyhow::Result<()> {
    let e = &report.evaluation;
    let layers = e.active_fraction_per_layer.iter().enumerate().map(|(i, &active)| {
        let mut row = vec![format!("layer {i}"), percent(active)];
        if let Some(q) = report.selection.as_ref().map(|s| s[i]) {
            row.extend([percent(q.true_active_fraction), percent(q.recall), percent(q.precision)]);
        }
        row
    });
    let header = ["", "active", "truly active", "recall", "precision"];
    table(&header[..if report.selection.is_some() { 5 } else { 2 }], layers)
}
