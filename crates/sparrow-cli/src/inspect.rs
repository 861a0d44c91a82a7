//! `sparrow inspect`.

use std::collections::BTreeMap;
use std::io::Write;

use serde::Serialize;
use serde_json::json;
use sparrow::internals::checkpoint::{GgufMetadata, GgufValue, ModelFiles, TensorInfo};
use sparrow::internals::select::Record;
use sparrow::internals::spec::{Positions, Rope, RopeScaling};
use sparrow::internals::tensor::Weight;
use sparrow::{Model, Placement};
use sparrow_tools::prune::PruningRecord;
use sparrow_tools::quantize::QuantizationRecord;

use crate::layerwise::cost;
use crate::model::{demo_dir, resolve};
use crate::output::{self, Format, LayersArg, by_layer, percent};
use crate::{prune, quantize};

/// Show what a model is.
#[derive(clap::Args)]
pub struct Args {
    /// Hugging Face model directory, GGUF file, or hub id org/name[/FILE.gguf][@revision] [default: the bundled demo model]
    model: Option<String>,
    /// Form of the output
    #[arg(long, value_enum, default_value_t, help_heading = "Output")]
    format: Format,
    #[command(flatten)]
    layers: LayersArg,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    let dir = match &args.model {
        Some(model) => resolve(model)?,
        None => demo_dir()?,
    };
    let files = ModelFiles::open(&dir)?.blank();
    let model = Model::read(&files, Placement::default(), |_, _| ())?;
    let tensors: Vec<TensorInfo> = files.checkpoint()?.tensors().collect();
    let groups = group(&tensors);
    let bytes: u64 = tensors.iter().map(|t| t.bytes as u64).sum();
    let spec = &model.spec;
    let sidecar = model.sidecar.as_ref().map(|s| &s.file);
    let bitmaps = Bitmaps::of(&model);
    let pruning = PruningRecord::read(&dir)?;
    let quantization = QuantizationRecord::read(&dir)?;
    if args.format == Format::Json {
        return output::json(&json!({
            "model": dir.display().to_string(),
            "architecture": spec.architecture,
            "parameters": spec.parameters(),
            "bytes": bytes,
            "vocab_size": spec.vocab_size, "hidden_size": spec.hidden_size, "intermediate_size": spec.intermediate_size,
            "num_layers": spec.num_layers, "num_heads": spec.num_heads, "num_kv_heads": spec.num_kv_heads,
            "head_dim": spec.head_dim, "context_length": spec.context_length(),
            "windows": spec.windows,
            "activation": format!("{:?}", spec.activation), "tied": spec.tied,
            "eos_token_ids": model.generation.eos_token_ids,
            "tensors": groups.iter().map(|g| json!({
                "name": g.name, "count": g.count, "dtype": g.dtype, "shape": g.shape, "bytes": g.bytes,
            })).collect::<Vec<_>>(),
            "gguf": files.gguf().map(|gguf| values(gguf.metadata()).collect::<BTreeMap<_, _>>()),
            "bitmaps": bitmaps,
            "sparsity": sidecar,
            "pruning": pruning,
            "quantization": quantization,
        }));
    }
    let positions = match &spec.positions {
        Positions::Rope { full, windowed: None } => rotary(full),
        Positions::Rope { full, windowed: Some(windowed) } => {
            format!("{}; in layers with a window {}", rotary(full), rotary(windowed))
        }
        Positions::Learned { .. } => "learned".into(),
    };
    print_tensors(&groups)?;
    if args.layers.layers {
        print_layers(&model, pruning.as_ref())?;
    }
    let mut out = std::io::stdout().lock();
    writeln!(out, "{}", dir.display())?;
    for (name, value) in [
        ("architecture", spec.architecture.clone()),
        ("parameters", format!("{:.2} M in {}", spec.parameters() as f64 / 1e6, output::bytes(bytes))),
        ("layers", format!("{} of hidden size {}", spec.num_layers, spec.hidden_size)),
        (
            "attention",
            format!("{} heads of {}, {} for keys and values", spec.num_heads, spec.head_dim, spec.num_kv_heads),
        ),
        (
            "MLP",
            format!(
                "{} neurons, {:?}{}",
                spec.intermediate_size,
                spec.activation,
                if spec.gated { ", gated" } else { "" }
            ),
        ),
        ("windows", windows(&spec.windows)),
        ("positions", positions),
        ("context", format!("{} tokens", spec.context_length())),
        (
            "vocabulary",
            format!(
                "{} tokens, head {}",
                spec.vocab_size,
                if spec.tied { "tied to the embedding" } else { "of its own" }
            ),
        ),
        ("ends with", format!("token ids {:?}", model.generation.eos_token_ids)),
    ] {
        writeln!(out, "{name:>14}  {value}")?;
    }
    if let Some(gguf) = files.gguf() {
        let found: BTreeMap<_, _> = values(gguf.metadata()).collect();
        let of = |key: &str| found.get(key).map_or("not named", String::as_str);
        writeln!(out, "{:>14}  {}", "called", of("general.name"))?;
        let (kind, split) = (of("tokenizer.ggml.model"), of("tokenizer.ggml.pre"));
        writeln!(out, "{:>14}  {kind}, text split as {split}", "tokenizer")?;
        let template = if found.contains_key("tokenizer.chat_template") { "in the file" } else { "none" };
        writeln!(out, "{:>14}  {template}", "chat template")?;
    }
    if let Some(bitmaps) = &bitmaps {
        let Bitmaps { matrices, zeros, bytes_per_weight } = bitmaps;
        let zeros = percent(*zeros);
        writeln!(out, "{:>14}  {matrices} matrices, {zeros} zeros, {bytes_per_weight:.3} bytes per weight", "bitmaps")?;
    }
    if let Some(p) = &pruning {
        writeln!(out, "{:>14}  {}", "pruned", prune::describe(p))?;
        writeln!(out, "{:>14}  {}", "its cost", cost(&p.quality))?;
    }
    if let Some(q) = &quantization {
        writeln!(out, "{:>14}  {}", "quantised", quantize::describe(q))?;
        writeln!(out, "{:>14}  {}", "its cost", cost(&q.quality))?;
    }
    match sidecar {
        None => writeln!(out, "{:>14}  none stored (dense; see `sparrow sparsify`)", "sparsity")?,
        Some(s) => {
            let e = &s.quality.evaluation;
            let neurons = |record: &dyn Record| format!("selector {}, neuron-major MLP", record.describe());
            let selector = s.record().map_or_else(|| "selector dense".to_owned(), neurons);
            let runs = s.dtype.map_or_else(String::new, |dtype| format!(", quantised to {dtype} when it is loaded"));
            writeln!(out, "{:>14}  {selector}{runs}", "sparsity")?;
            writeln!(out, "{:>14}  {} ({} tokens)", "calibrated on", s.calibration.file, s.calibration.tokens)?;
            if let Some(bars) = by_layer(&e.active_fraction_per_layer) {
                writeln!(out, "{:>14}  {bars}", "active")?;
            }
            writeln!(
                out,
                "{:>14}  perplexity {:.4}, dense {:.4}; KL divergence {:.2e}; {} active ({})",
                "quality",
                e.perplexity,
                e.dense_perplexity,
                e.kl_mean,
                percent(e.active_fraction),
                s.quality.text
            )?;
        }
    }
    Ok(())
}

/// The single values of a GGUF file, as text.
fn values(metadata: &GgufMetadata) -> impl Iterator<Item = (&str, String)> {
    metadata.iter().filter_map(|(key, value)| match value {
        GgufValue::List(_) => None,
        GgufValue::String(text) => Some((key, text.clone())),
        other => Some((key, other.to_string())),
    })
}

fn print_tensors(groups: &[Group]) -> anyhow::Result<()> {
    let rows = groups.iter().map(|g| {
        let shape: Vec<String> = g.shape.iter().map(usize::to_string).collect();
        vec![g.name.clone(), g.count.to_string(), g.dtype.clone(), shape.join(" × "), output::bytes(g.bytes)]
    });
    output::table(&["tensor", "count", "dtype", "shape", "bytes"], rows)
}

/// A row for each layer: its size, how far it sees, and what pruning and sparsifying did to it.
fn print_layers(model: &Model, pruning: Option<&PruningRecord>) -> anyhow::Result<()> {
    let quality = model.sidecar.as_ref().map(|s| &s.file.quality);
    let header = ["", "bytes", "sees"].into_iter();
    let header = header.chain(pruning.map(|_| "pruned to")).chain(quality.map(|_| "active"));
    let rows = model.weights.layers.iter().enumerate().map(|(i, layer)| {
        let size = output::bytes(layer.attention_bytes() + layer.mlp.bytes());
        let row = [format!("layer {i}"), size, seen(model.spec.windows[i])].into_iter();
        // A record is a file of its own, which may know fewer layers.
        let zeros = pruning.map(|p| p.layers.get(i).map_or_else(String::new, |layer| percent(layer.target)));
        let active =
            quality.map(|q| q.evaluation.active_fraction_per_layer.get(i).copied().map_or_else(String::new, percent));
        row.chain(zeros).chain(active).collect()
    });
    output::table(&header.collect::<Vec<_>>(), rows)
}

fn rotary(rope: &Rope) -> String {
    let scaling = match &rope.scaling {
        RopeScaling::None => String::new(),
        RopeScaling::Linear { factor } => format!(", linear scaling by {factor}"),
        RopeScaling::Dynamic { factor } => format!(", dynamic scaling by {factor}"),
        RopeScaling::Llama3 { factor, original_max_position_embeddings: original, .. } => {
            format!(", llama3 scaling by {factor} from {original} tokens")
        }
        RopeScaling::Yarn { factor, original_max_position_embeddings: original, .. } => {
            format!(", yarn scaling by {factor} from {original} tokens")
        }
        RopeScaling::LongRope { original_max_position_embeddings: original, .. } => {
            format!(", longrope scaling beyond {original} tokens")
        }
    };
    format!("rotary, theta {}{scaling}", rope.theta)
}

/// How many layers see how far back.
fn windows(windows: &[Option<usize>]) -> String {
    let mut layers = BTreeMap::new();
    windows.iter().for_each(|&window| *layers.entry(window).or_insert(0) += 1);
    let each = layers.iter().map(|(window, &count)| {
        let see = if count == 1 { "layer sees" } else { "layers see" };
        format!("{count} {see} {}", seen(*window))
    });
    each.collect::<Vec<_>>().join(", ")
}

/// How far back a layer sees.
fn seen(window: Option<usize>) -> String {
    window.map_or("all tokens".into(), |window| format!("the last {window}"))
}

/// What is stored as bitmaps.
#[derive(Serialize)]
struct Bitmaps {
    matrices: usize,
    /// Elements that are not stored ÷ all.
    zeros: f64,
    bytes_per_weight: f64,
}

impl Bitmaps {
    /// Of a model, if it has any.
    fn of(model: &Model) -> Option<Self> {
        let (mut matrices, mut elements, mut stored, mut bytes) = (0, 0.0, 0.0, 0.0);
        for (_, weight) in model.weights.named(&model.spec) {
            if let Weight::Bitmap(tensor) = weight {
                let size = (tensor.rows() * tensor.cols()) as f64;
                matrices += 1;
                elements += size;
                stored += size * tensor.bitmap().density();
                bytes += tensor.byte_len() as f64;
            }
        }
        let found = Bitmaps { matrices, zeros: 1.0 - stored / elements, bytes_per_weight: bytes / elements };
        (matrices > 0).then_some(found)
    }
}

/// The tensors of all layers that share role, dtype and shape.
struct Group {
    name: String,
    count: usize,
    dtype: String,
    shape: Vec<usize>,
    bytes: u64,
}

fn group(tensors: &[TensorInfo]) -> Vec<Group> {
    let mut groups = BTreeMap::new();
    for t in tensors {
        let is_index = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
        let name: Vec<&str> = t.name.split('.').map(|part| if is_index(part) { "*" } else { part }).collect();
        // How many elements are stored is each layer's own.
        let of_bitmap = t.name.ends_with(".compressed") && t.shape.len() == 1;
        let shape = if of_bitmap { Vec::new() } else { t.shape.clone() };
        let dtype = t.stored_as.map_or_else(|| format!("{:?}", t.dtype), str::to_owned);
        let key = (name.join("."), dtype, shape);
        let (count, bytes) = groups.entry(key).or_insert((0, 0));
        *count += 1;
        *bytes += t.bytes as u64;
    }
    let group = |((name, dtype, shape), (count, bytes))| Group { name, count, dtype, shape, bytes };
    groups.into_iter().map(group).collect()
}
