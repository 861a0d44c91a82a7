//! Rotary embeddings: metadata, and the tensors that some files have of them.

use serde_json::{Map, Value, json};
use sparrow_kernels::decode;

use super::file::Tensors;
use super::keys::Keys;
use crate::error::{Error, Result};
use crate::spec::{Rope, RopeScaling};

/// Writes the fields of `config.json` that say how heads of `width` are rotated.
///
/// # Errors
/// If the scaling is of an unknown kind, or its tensors have another size.
pub(super) fn describe(
    tensors: &Tensors,
    keys: &Keys,
    width: usize,
    context: usize,
    fields: &mut Map<String, Value>,
) -> Result<()> {
    let theta = keys.positive("rope.freq_base")?.unwrap_or(10_000.0);
    fields.insert("rope_theta".into(), theta.into());
    if let Some(local) = keys.positive("rope.freq_base_swa")? {
        fields.insert("rope_local_base_freq".into(), local.into());
    }
    let original = keys.usize("rope.scaling.original_context_length")?;
    let factor = keys.positive("rope.scaling.factor")?.or(keys.positive("rope.scale_linear")?);
    let attention_factor = keys.positive("rope.scaling.attn_factor")?;
    let factors = |name: &str| factors(tensors, name);
    let mut scaling = match (factors("rope_freqs.weight")?, factors("rope_factors_long.weight")?) {
        (Some(divisors), _) => llama3(theta, width, context, &divisors),
        (None, Some(long)) => {
            let short = factors("rope_factors_short.weight")?;
            let original = keys.metadata.required(&keys.name("rope.scaling.original_context_length"), original)?;
            fields.insert("original_max_position_embeddings".into(), original.into());
            json!({ "rope_type": "longrope", "short_factor": short.unwrap_or_else(|| vec![1.0; long.len()]), "long_factor": long })
        }
        (None, None) => match (keys.str("rope.scaling.type")?, factor) {
            (Some("none"), _) | (None, None) => Value::Null,
            (Some("linear") | None, Some(factor)) => json!({ "rope_type": "linear", "factor": factor }),
            (Some("yarn"), Some(factor)) => json!({ "rope_type": "yarn", "factor": factor }),
            (Some("linear" | "yarn" | "longrope"), None) => Value::Null,
            (Some(other), _) => {
                let message = format!("is {other:?}: none, linear, yarn and longrope are supported");
                return Err(keys.metadata.error(&keys.name("rope.scaling.type"), message));
            }
        },
    };
    let Value::Object(rules) = &mut scaling else { return Ok(()) };
    let kind = rules["rope_type"].as_str().unwrap_or_default().to_owned();
    if let Some(original) = original.filter(|_| kind == "yarn") {
        rules.insert("original_max_position_embeddings".into(), original.into());
    }
    if let Some(attention_factor) =
        attention_factor.filter(|_| kind == "longrope" && !rules.contains_key("attention_factor"))
    {
        rules.insert("attention_factor".into(), attention_factor.into());
    }
    fields.insert("rope_scaling".into(), scaling);
    Ok(())
}

/// The numbers of a small tensor.
fn factors(tensors: &Tensors, name: &str) -> Result<Option<Vec<f64>>> {
    const MOST: usize = 1 << 16;
    let Some(tensor) = tensors.get(name) else { return Ok(None) };
    let count = tensor.shape.iter().product();
    if tensor.shape.len() != 1 || count > MOST {
        return Err(Error::gguf(tensor.file.path(), format!("tensor {name} has shape {:?}", tensor.shape)));
    }
    let mut numbers = vec![0.0; count];
    decode(tensor.dtype, &tensor.file.bytes()[tensor.range.clone()], &mut numbers);
    // As decimal numbers that mean the same to an f32.
    Ok(Some(numbers.iter().map(|n| n.to_string().parse().unwrap_or(f64::from(*n))).collect()))
}

/// Files of Llama 3.1 and later have what each frequency is divided by, and not the rule that it comes from. It is the rule of
/// the published models, whose factor the lowest frequency shows; other divisors are given as they are.
fn llama3(theta: f64, width: usize, context: usize, divisors: &[f64]) -> Value {
    const ORIGINAL: usize = 8192;
    let factor = divisors.iter().copied().fold(1.0, f64::max);
    let rule = RopeScaling::Llama3 {
        factor,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_position_embeddings: ORIGINAL,
    };
    let frequencies = |scaling| {
        let rope = Rope { theta, rotary_dim: width, scaling, attention_factor: 1.0 };
        let mut frequencies = vec![0.0; width / 2];
        rope.frequencies(1, context, &mut frequencies);
        frequencies
    };
    let (plain, ruled) = (frequencies(RopeScaling::None), frequencies(rule));
    let same = |((plain, ruled), divisor): ((&f32, &f32), &f64)| {
        let divided = f64::from(*plain) / divisor;
        (divided - f64::from(*ruled)).abs() <= 1e-5 * divided
    };
    if divisors.len() == plain.len() && plain.iter().zip(&ruled).zip(divisors).all(same) {
        json!({
            "rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": ORIGINAL,
        })
    } else {
        json!({
            "rope_type": "longrope", "short_factor": divisors, "long_factor": divisors, "attention_factor": 1.0,
            "original_max_position_embeddings": context,
        })
    }
}
