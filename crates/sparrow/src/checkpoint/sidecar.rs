//! Reads `sparrow.json` and its tensors, and refuses them for any model but their own.

use std::path::Path;

use sha2::{Digest, Sha256};

use super::{Checkpoint, read_json};
use crate::error::{Error, Result};
use crate::model::spec::ModelSpec;
use crate::sparsity::{Predictor, Sidecar, SidecarFile, Threshold};

/// Name of one predictor tensor: `a` `[rank, hidden]` or `b` `[intermediate, rank]`.
pub(crate) fn predictor_tensors(layer: usize) -> (String, String) {
    (format!("sparrow.layers.{layer}.predictor.a"), format!("sparrow.layers.{layer}.predictor.b"))
}

/// SHA-256 over names, shapes and sampled bytes of a checkpoint's tensors: reading all of a large model would cost
/// every start many seconds.
pub(crate) fn fingerprint(checkpoint: &Checkpoint) -> String {
    let mut hash = Sha256::new();
    for (name, shape, bytes) in checkpoint.identity() {
        hash.update(format!("{name} {shape:?}\n"));
        hash.update(bytes);
    }
    hex(&hash.finalize())
}

/// Lower-case hexadecimal digits of `bytes`.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// The sidecar of `dir`, if it has one; its tensors are added to the checkpoint.
///
/// # Errors
/// If it is malformed, or a field does not fit the model; the message names the field.
pub(crate) fn read_sidecar(dir: &Path, spec: &ModelSpec, checkpoint: &mut Checkpoint) -> Result<Option<Sidecar>> {
    let path = dir.join(SidecarFile::NAME);
    if path.symlink_metadata().is_err() {
        return Ok(None);
    }
    let wrong = |field, message: String| Error::Sidecar { path: path.clone(), field, message };
    let json = read_json(&path)?;
    let version = json.get("format_version").cloned().unwrap_or_default();
    if version != SidecarFile::VERSION {
        let message = format!("expected {}, found {version}: run `sparrow sparsify` again", SidecarFile::VERSION);
        return Err(wrong("format_version", message));
    }
    // The error names the field, which serde_json alone does not.
    let file: SidecarFile =
        serde_path_to_error::deserialize(json).map_err(|e| Error::config(&path, format!("field {e}")))?;
    let found = fingerprint(checkpoint);
    if file.fingerprint != found {
        let message =
            format!("is {}, but the weights beside it have {found}: they are not its model", file.fingerprint);
        return Err(wrong("fingerprint", message));
    }
    let per_layer = |field, len: usize| match len == spec.num_layers {
        true => Ok(()),
        false => Err(wrong(field, format!("has {len} entries for a model of {} layers", spec.num_layers))),
    };
    per_layer("thresholds", file.thresholds.len())?;
    per_layer("true_active_above", file.true_active_above.len())?;
    for (layer, threshold) in file.thresholds.iter().enumerate() {
        // What the command line accepts is what a file may hold.
        let checked = threshold.to_string().parse::<Threshold>();
        checked.map_err(|e| wrong("thresholds", format!("entry {layer}: {e}")))?;
    }
    if let Some(layer) = file.true_active_above.iter().position(|t| !(t.is_finite() && *t >= 0.0)) {
        let message =
            format!("entry {layer} must be a finite number, 0 or above, found {}", file.true_active_above[layer]);
        return Err(wrong("true_active_above", message));
    }
    let predictors = match (file.selector.as_str(), file.rank) {
        ("gate", None) => Vec::new(),
        ("lowrank", Some(rank)) if (1..=spec.hidden_size).contains(&rank) => {
            checkpoint.add_file(&dir.join(SidecarFile::TENSORS))?;
            read_predictors(spec, checkpoint, rank)?
        }
        ("gate" | "lowrank", rank) => return Err(wrong("rank", format!("does not fit the selector: {rank:?}"))),
        (other, _) => return Err(wrong("selector", format!("must be gate or lowrank, found {other:?}"))),
    };
    Ok(Some(Sidecar { file, predictors }))
}

fn read_predictors(spec: &ModelSpec, checkpoint: &mut Checkpoint, rank: usize) -> Result<Vec<Predictor>> {
    let read = |layer| {
        let (a, b) = predictor_tensors(layer);
        let bias = match (spec.biases.mlp, spec.gated) {
            (false, _) => vec![0.0; spec.intermediate_size],
            (true, gated) => {
                let part = if gated { "gate_proj" } else { "up_proj" };
                checkpoint.vector(&format!("model.layers.{layer}.mlp.{part}.bias"), spec.intermediate_size)?
            }
        };
        let a = checkpoint.matrix(&a, rank, spec.hidden_size)?;
        Ok(Predictor { a, b: checkpoint.matrix(&b, spec.intermediate_size, rank)?, bias })
    };
    (0..spec.num_layers).map(read).collect()
}
