//! Reads `sparrow.json` and its tensors, and refuses them for any model but their own.

use std::path::Path;

use super::{Sidecar, SidecarFile};
use crate::backend::{InputNorms, Predictor};
use crate::checkpoint::{Checkpoint, fingerprint, read_json};
use crate::error::{Error, Result};
use crate::select::{Record, Unfit, gate_neuron_tensors, norm_tensors, predictor_tensors};
use crate::spec::ModelSpec;

/// The sidecar of `dir`, if it has one; its tensors are added to the checkpoint.
///
/// # Errors
/// If it is malformed, or a field does not fit the model; the message names the field.
pub fn read_sidecar(dir: &Path, spec: &ModelSpec, checkpoint: &mut Checkpoint) -> Result<Option<Sidecar>> {
    let path = dir.join(SidecarFile::NAME);
    if path.symlink_metadata().is_err() {
        return Ok(None);
    }
    let wrong = |Unfit { field, message }| Error::Sidecar { path: path.clone(), field, message };
    let json = read_json(&path)?;
    let version = json.get("format_version").cloned().unwrap_or_default();
    if version != SidecarFile::VERSION {
        let message = format!("expected {}, found {version}: run `sparrow sparsify` again", SidecarFile::VERSION);
        return Err(wrong(Unfit { field: "format_version", message }));
    }
    // The error names the field, which serde_json alone does not.
    let file: SidecarFile =
        serde_path_to_error::deserialize(json).map_err(|e| Error::config(&path, format!("field {e}")))?;
    let found = fingerprint(checkpoint);
    if file.fingerprint != found {
        let message =
            format!("is {}, but the weights beside it have {found}: they are not its model", file.fingerprint);
        return Err(wrong(Unfit { field: "fingerprint", message }));
    }
    let record = file.record();
    record.map_or(Ok(()), |record| record.check(spec)).and_then(|()| check_truth(&file, spec)).map_err(wrong)?;
    let predictors = match record.and_then(Record::predictors) {
        None => Vec::new(),
        Some((rank, trained)) => {
            checkpoint.add_file(&dir.join(SidecarFile::TENSORS))?;
            read_predictors(spec, checkpoint, rank, trained)?
        }
    };
    let norms = match record.is_some_and(Record::has_norms) {
        false => None,
        true => {
            checkpoint.add_file(&dir.join(SidecarFile::TENSORS))?;
            Some(read_norms(spec, checkpoint)?.into())
        }
    };
    let gate_neurons = match record.is_some_and(Record::has_gate_neurons) {
        false => None,
        true => {
            checkpoint.add_file(&dir.join(SidecarFile::TENSORS))?;
            Some(read_gate_neurons(spec, checkpoint)?)
        }
    };
    Ok(Some(Sidecar { file, predictors, norms, gate_neurons }))
}

fn check_truth(file: &SidecarFile, spec: &ModelSpec) -> std::result::Result<(), Unfit> {
    let (field, truth) = ("true_active_above", &file.true_active_above);
    if file.record().and_then(Record::neuron_thresholds).is_some() {
        Unfit::unless_per_layer(field, truth.len(), spec)?;
    }
    match truth.iter().position(|t| !(t.is_finite() && *t >= 0.0)) {
        None => Ok(()),
        Some(layer) => {
            let message = format!("entry {layer} must be a finite number, 0 or above, found {}", truth[layer]);
            Err(Unfit { field, message })
        }
    }
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

fn read_norms(spec: &ModelSpec, checkpoint: &mut Checkpoint) -> Result<Vec<InputNorms>> {
    let widths = [spec.hidden_size, spec.q_size(), spec.hidden_size, spec.intermediate_size];
    let read = |layer| {
        let mut norms = InputNorms::default();
        for ((name, width), norms) in norm_tensors(layer).iter().zip(widths).zip(&mut norms) {
            *norms = checkpoint.vector(name, width)?;
        }
        Ok(norms)
    };
    (0..spec.num_layers).map(read).collect()
}

fn read_gate_neurons(spec: &ModelSpec, checkpoint: &mut Checkpoint) -> Result<Vec<[Vec<f32>; 2]>> {
    let read = |layer| {
        let [weights, left_out] = gate_neuron_tensors(layer);
        let mut read = |name| checkpoint.vector(name, spec.intermediate_size);
        Ok([read(&weights)?, read(&left_out)?])
    };
    (0..spec.num_layers).map(read).collect()
}
