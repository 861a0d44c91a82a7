//! The state of training on disk, so that an interrupted run goes on where it was.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use sha2::{Digest, Sha256};
use sparrow::internals::checkpoint::hex;
use sparrow::{Error, Result};
use sparrow_kernels::{DType, decode, encode};

use super::adamw::AdamW;

/// The state of one layer's training: what is saved after each epoch.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Progressed {
    pub epochs: usize,
    pub optimiser: AdamW,
    pub best: Vec<f32>,
    pub best_f1: f64,
}

/// A directory beside the output, and a digest of what it was made for.
pub(crate) struct State {
    dir: PathBuf,
    key: String,
}

impl State {
    /// For the output directory `out`; `key` describes model, text and options.
    pub fn new(out: &Path, key: &str) -> Self {
        let mut name = out.file_name().unwrap_or_default().to_owned();
        name.push(".training");
        State { dir: out.with_file_name(name), key: hex(&Sha256::digest(key.as_bytes())) }
    }

    /// Makes the directory, or checks that the one that is there is of the same run.
    ///
    /// # Errors
    /// If it is of another, or cannot be read or written.
    pub(super) fn begin(&self) -> Result<()> {
        let path = self.dir.join("run");
        match std::fs::read_to_string(&path) {
            Ok(found) if found == self.key => Ok(()),
            Ok(_) => {
                let message = format!(
                    "{} holds interrupted training of another model, text or options: remove it to start anew",
                    self.dir.display()
                );
                Err(Error::option("output", message))
            }
            Err(_) => {
                std::fs::create_dir_all(&self.dir).map_err(Error::io(&self.dir))?;
                std::fs::write(&path, &self.key).map_err(Error::io(&path))
            }
        }
    }

    /// What was saved of a layer, if anything; it has `parameters` parameters.
    pub(super) fn load(&self, layer: usize, parameters: usize) -> Result<Option<Progressed>> {
        let path = self.file(layer);
        let Ok(bytes) = std::fs::read(&path) else { return Ok(None) };
        let wrong = |what: String| Error::safetensors(&path, format!("{what}: remove it to train this layer anew"));
        let (_, metadata) = SafeTensors::read_metadata(&bytes).map_err(|e| wrong(e.to_string()))?;
        let file = SafeTensors::deserialize(&bytes).map_err(|e| wrong(e.to_string()))?;
        let numbers = metadata.metadata().clone().unwrap_or_default();
        let number = |name: &str| numbers.get(name).ok_or_else(|| wrong(format!("has no {name}")));
        let parse = |name: &str| number(name)?.parse::<usize>().map_err(|e| wrong(format!("{name}: {e}")));
        let tensor = |name: &str| {
            let view = file.tensor(name).map_err(|e| wrong(e.to_string()))?;
            if view.dtype() != Dtype::F32 || view.shape() != [parameters] {
                return Err(wrong(format!("{name} has shape {:?}, not [{parameters}]", view.shape())));
            }
            let mut values = vec![0.0; parameters];
            decode(DType::F32, view.data(), &mut values);
            Ok(values)
        };
        let best_f1 = number("best_f1")?.parse().map_err(|e| wrong(format!("best_f1: {e}")))?;
        let optimiser = AdamW {
            parameters: tensor("parameters")?,
            mean: tensor("mean")?,
            square: tensor("square")?,
            steps: parse("steps")?,
        };
        Ok(Some(Progressed { epochs: parse("epochs")?, optimiser, best: tensor("best")?, best_f1 }))
    }

    /// Saves the state of a layer: to a temporary file, which is then renamed.
    pub(super) fn save(&self, layer: usize, at: &Progressed) -> Result<()> {
        let path = self.file(layer);
        let bytes = |values: &[f32]| {
            let mut out = vec![0; DType::F32.row_bytes(values.len())];
            encode(DType::F32, values, &mut out);
            out
        };
        let optimiser = &at.optimiser;
        let tensors = [
            ("parameters", bytes(&optimiser.parameters)),
            ("mean", bytes(&optimiser.mean)),
            ("square", bytes(&optimiser.square)),
            ("best", bytes(&at.best)),
        ];
        let wrong = |e| Error::safetensors(&path, format!("cannot be written: {e}"));
        let shape = vec![at.best.len()];
        let views = tensors
            .iter()
            .map(|(name, bytes)| Ok((*name, TensorView::new(Dtype::F32, shape.clone(), bytes).map_err(wrong)?)))
            .collect::<Result<Vec<_>>>()?;
        let numbers = [
            ("epochs", at.epochs.to_string()),
            ("steps", optimiser.steps.to_string()),
            ("best_f1", at.best_f1.to_string()),
        ];
        let metadata: HashMap<String, String> = numbers.map(|(name, value)| (name.to_owned(), value)).into();
        let bytes = safetensors::serialize(views, Some(metadata)).map_err(wrong)?;
        let temporary = path.with_extension("tmp");
        std::fs::write(&temporary, bytes).map_err(Error::io(&temporary))?;
        std::fs::rename(&temporary, &path).map_err(Error::io(&path))
    }

    /// The output is complete: nothing is left to go on with.
    pub fn remove(&self) {
        // It may never have been made; left over it does no harm.
        let _ = std::fs::remove_dir_all(&self.dir);
    }

    fn file(&self, layer: usize) -> PathBuf {
        self.dir.join(format!("layer-{layer}.safetensors"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_saved_comes_back_and_another_run_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let state = State::new(&dir.path().join("out"), "a run");
        state.begin().unwrap();
        assert_eq!(state.load(3, 2).unwrap(), None);
        let optimiser = AdamW { parameters: vec![1.5, -0.1], mean: vec![0.0, 1e-30], square: vec![1e9, 0.5], steps: 7 };
        let at = Progressed { epochs: 2, optimiser, best: vec![0.25, 4.0], best_f1: 0.1 + 0.2 };
        state.save(3, &at).unwrap();
        state.begin().unwrap();
        assert_eq!(state.load(3, 2).unwrap(), Some(at));
        assert!(state.load(3, 5).unwrap_err().to_string().contains("remove it"));
        assert!(State::new(&dir.path().join("out"), "another").begin().unwrap_err().to_string().contains("remove it"));
        state.remove();
        assert!(!dir.path().join("out.training").exists());
    }
}
