//! `quantization_config`: whether weights are stored in a way that [`compressed`](crate::checkpoint::compressed) can read. The
//! tensors say everything else themselves. And the same for compressed-tensors, of weights stored as bitmaps.

use serde_json::{Value, json};

use crate::checkpoint::fields::Fields;
use crate::error::Result;

/// Formats of compressed-tensors whose layers can be read; the first two are the same.
const FORMATS: [&str; 3] = ["int-quantized", "naive-quantized", "pack-quantized"];
/// Its formats of pruned weights that can.
const SPARSE_FORMATS: [&str; 2] = ["dense", "sparse-bitmask"];
/// Elements of int4 that share a scale.
const GROUPS: [usize; 3] = [32, 64, 128];

/// The method of weights that have a row for each input, which compressed-tensors has no words for.
const INPUT_MAJOR: &str = "sparrow-input-major";

/// Refuses what Sparrow's quantised types cannot hold, or what it would not compute.
///
/// # Errors
/// Names the field, what was found and what can be read.
pub(super) fn check(config: &Fields) -> Result<()> {
    let Some(fields) = config.object("quantization_config")? else { return Ok(()) };
    let method = fields.str("quant_method")?;
    one_of(&fields, "quant_method", method, &["compressed-tensors", INPUT_MAJOR])?;
    if method == Some(INPUT_MAJOR) {
        return Ok(());
    }
    for (name, what) in [("kv_cache_scheme", "scales of cached keys and values"), ("transform_config", "rotations")] {
        if fields.object(name)?.is_some() {
            return Err(fields.error(name, &format!("is there: {what} are not supported")));
        }
    }
    if let Some(sparsity) = fields.object("sparsity_config")?
        && sparsity.has("format")
    {
        one_of(&sparsity, "format", sparsity.str("format")?, &SPARSE_FORMATS)?;
    }
    let Some(groups) = fields.object("config_groups")? else { return Ok(()) };
    for group in groups.objects()? {
        let Some(weights) = group.object("weights")? else { continue };
        match group.str("format")? {
            Some(format) => one_of(&group, "format", Some(format), &FORMATS)?,
            None => one_of(&fields, "format", fields.str("format")?, &FORMATS)?,
        }
        check_weights(&weights)?;
        // Here int8 rows meet activations quantised per token, and int4 rows exact ones, or bf16 in prompts on AMX.
        if let Some(inputs) = group.object("input_activations")?
            && inputs.bool("dynamic")? != Some(true)
        {
            return Err(inputs.error("dynamic", "is not true: stored scales of activations are not supported"));
        }
        if group.object("output_activations")?.is_some() {
            return Err(group.error("output_activations", "is there: quantised outputs are not supported"));
        }
    }
    Ok(())
}

/// What compressed-tensors 0.9, the last to write bitmaps, says of a model whose linear layers, but for `dense`, are stored as
/// [bitmaps](crate::tensor::BitmapTensor): of int8 codes with a scale per row if `int8`. `sparsity` is the fraction of the
/// model's weights that is not stored.
pub fn describe_bitmaps(dense: &[&str], int8: bool, sparsity: f64) -> Value {
    let targets = ["Linear"];
    let mut config = json!({
        "quant_method": "compressed-tensors",
        "sparsity_config": {
            "format": "sparse-bitmask", "targets": targets, "ignore": dense,
            "global_sparsity": sparsity, "sparsity_structure": "unstructured",
        },
    });
    if int8 {
        let weights = json!({
            "num_bits": 8, "type": "int", "symmetric": true, "strategy": "channel", "dynamic": false,
        });
        config["format"] = "int-quantized".into();
        config["quantization_status"] = "compressed".into();
        config["ignore"] = dense.into();
        config["config_groups"] = json!({ "group_0": { "targets": targets, "weights": weights } });
    }
    config
}

/// Linear layers that are stored as packed integers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackedLayers {
    /// Their names, or that of their class.
    pub modules: Vec<String>,
    /// Of a weight.
    pub bits: u32,
    /// Inputs that share a scale; none: a row.
    pub group: Option<usize>,
    /// Whether groups have zero points instead of being symmetric.
    pub zero_points: bool,
}

/// What compressed-tensors says of a model whose linear layers, but for `ignored`, are packed integers.
pub fn describe_packed(ignored: &[String], layers: &[PackedLayers]) -> Value {
    let group = |layers: &PackedLayers| {
        let mut weights = json!({
            "num_bits": layers.bits, "type": "int", "symmetric": !layers.zero_points, "strategy": "channel", "dynamic": false,
        });
        if let Some(group) = layers.group {
            weights["strategy"] = "group".into();
            weights["group_size"] = group.into();
        }
        json!({ "targets": layers.modules, "weights": weights })
    };
    let groups = layers.iter().enumerate().map(|(number, layers)| (format!("group_{number}"), group(layers)));
    json!({
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "ignore": ignored,
        "config_groups": groups.collect::<serde_json::Map<_, _>>(),
    })
}

/// What makes others refuse a model whose projections have a row for each input: they would look for weights that are not there.
pub fn describe_input_major() -> Value {
    json!({ "quant_method": INPUT_MAJOR })
}

fn check_weights(weights: &Fields) -> Result<()> {
    one_of(weights, "type", weights.str("type")?.or(Some("int")), &["int"])?;
    if weights.has("actorder") && weights.bool("actorder").is_err() {
        one_of(weights, "actorder", weights.str("actorder")?.or(Some("weight")), &["weight", "static"])?;
    }
    let bits = weights.usize("num_bits", 1..=64)?.unwrap_or(8);
    let strategy = weights.str("strategy")?;
    match bits {
        4 | 8 => {}
        other => return Err(weights.error("num_bits", &format!("is {other}: weights of 4 or 8 bits can be read"))),
    }
    if bits == 8 && weights.bool("symmetric")? == Some(false) {
        return Err(weights.error("symmetric", "is false: weights of 8 bits can be read without zero points only"));
    }
    let Some(strategy) = strategy else { return Ok(()) };
    let strategies = if bits == 8 { &["tensor", "channel"][..] } else { &["tensor", "channel", "group"] };
    one_of(weights, "strategy", Some(strategy), strategies)?;
    if strategy == "group" {
        let size = weights.required("group_size", weights.usize("group_size", 1..=1 << 24)?)?;
        if !GROUPS.contains(&size) {
            return Err(weights.error("group_size", &format!("is {size}: groups of 32, 64 or 128 can be read")));
        }
    }
    Ok(())
}

fn one_of(fields: &Fields, name: &str, found: Option<&str>, known: &[&str]) -> Result<()> {
    match found {
        Some(found) if known.contains(&found) => Ok(()),
        Some(found) => Err(fields.error(name, &format!("is {found:?}: only {} can be read", known.join(", ")))),
        None => Err(fields.error(name, &format!("is missing: {} can be read", known.join(", ")))),
    }
}
