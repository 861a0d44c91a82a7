//! Reads `sparrow.json` and its tensors, and refuses them for any model but their own.

use std::path::Path;

use sha2::{Digest, Sha256};

use super::{Checkpoint, read_json};
use crate::error::{Error, Result};
use crate::model::spec::ModelSpec;
use crate::sparsity::{Method, Predictor, Sidecar, SidecarFile, Threshold};

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
    match (&file.method, file.method.neuron_thresholds()) {
        (_, Some(thresholds)) => {
            per_layer("method.thresholds", thresholds.len())?;
            per_layer("true_active_above", file.true_active_above.len())?;
            for (layer, threshold) in thresholds.iter().enumerate() {
                // What the command line accepts is what a file may hold.
                let checked = threshold.to_string().parse::<Threshold>();
                checked.map_err(|e| wrong("method.thresholds", format!("entry {layer}: {e}")))?;
            }
        }
        (Method::Input { thresholds }, _) => {
            per_layer("method.thresholds", thresholds.len())?;
            if let Some(layer) = thresholds.iter().position(|t| !t.iter().all(|t| t.is_finite() && *t >= 0.0)) {
                let message =
                    format!("entry {layer} must be finite numbers, 0 or above, found {:?}", thresholds[layer]);
                return Err(wrong("method.thresholds", message));
            }
        }
        (Method::Skip(blocks), _) => {
            if let Some(layer) = blocks.out_of_range(spec.num_layers) {
                let message = format!("names layer {layer} of a model of {} layers", spec.num_layers);
                return Err(wrong("method.skip", message));
            }
        }
        _ => {}
    }
    if let Some(layer) = file.true_active_above.iter().position(|t| !(t.is_finite() && *t >= 0.0)) {
        let message =
            format!("entry {layer} must be a finite number, 0 or above, found {}", file.true_active_above[layer]);
        return Err(wrong("true_active_above", message));
    }
    let predictors = match file.method {
        Method::LowRank { rank, epochs, .. } if (1..=spec.hidden_size).contains(&rank) => {
            checkpoint.add_file(&dir.join(SidecarFile::TENSORS))?;
            read_predictors(spec, checkpoint, rank, epochs > 0)?
        }
        Method::LowRank { rank, .. } => {
            let message = format!("must be in 1..={}, found {rank}", spec.hidden_size);
            return Err(wrong("method.lowrank.rank", message));
        }
        _ => Vec::new(),
    };
    Ok(Some(Sidecar { file, predictors }))
}

/// Names of a layer's predictor tensors: `a` `[rank, input]`, `b` `[intermediate, rank]`, `bias` `[intermediate]`.
pub(crate) fn predictor_tensors(layer: usize) -> [String; 3] {
    ["a", "b", "bias"].map(|part| format!("sparrow.layers.{layer}.predictor.{part}"))
}

fn read_predictors(spec: &ModelSpec, checkpoint: &mut Checkpoint, rank: usize, logits: bool) -> Result<Vec<Predictor>> {
    let read = |layer| {
        let [a, b, bias] = predictor_tensors(layer);
        let a = checkpoint.matrix(&a, rank, spec.hidden_size)?;
        let b = checkpoint.matrix(&b, spec.intermediate_size, rank)?;
        Ok(Predictor { a, b, bias: checkpoint.vector(&bias, spec.intermediate_size)?, logits })
    };
    (0..spec.num_layers).map(read).collect()
}
