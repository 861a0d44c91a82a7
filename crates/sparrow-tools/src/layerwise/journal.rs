//! What an interrupted run leaves beside its finished layers, so that the next one goes on only where it may.

use serde::{Deserialize, Serialize};
use sparrow::internals::checkpoint::{Directory, pretty, read_json};
use sparrow::{Error, Result};

use super::options::PruneOptions;

/// The file in a directory under construction.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Journal {
    /// [`Journal::VERSION`].
    format_version: u32,
    /// Fingerprint of the model before.
    source: String,
    /// SHA-256 of the text.
    text: String,
    options: PruneOptions,
    /// The sparsity of each layer, once it is known.
    pub layers: Option<Vec<f64>>,
}

impl Journal {
    const VERSION: u32 = 1;
    /// Its name.
    const NAME: &str = "sparrow-journal.json";

    /// That of the run that `directory` was begun for; a new one in an empty directory.
    ///
    /// # Errors
    /// If the directory was begun for another run or by something else, or cannot be read or written.
    pub fn open(directory: &Directory, source: &str, text: &str, options: &PruneOptions) -> Result<Self> {
        let wanted = Journal {
            format_version: Self::VERSION,
            source: source.to_owned(),
            text: text.to_owned(),
            options: options.clone(),
            layers: None,
        };
        let dir = directory.path();
        if dir.join(Self::NAME).is_file() {
            let found = Self::read(directory)?;
            return found.filter(|found| Journal { layers: None, ..found.clone() } == wanted).ok_or_else(|| {
                let what = "holds interrupted pruning of another model or text or with other options";
                Error::option("output", format!("{} {what}: remove it to start anew", dir.display()))
            });
        }
        if directory.has_files()? {
            let message = format!("{} is in the way and holds no interrupted pruning: remove it", dir.display());
            return Err(Error::option("output", message));
        }
        wanted.write(directory)?;
        Ok(wanted)
    }

    /// Notes the sparsity of each layer, and returns it: as it will be read again, for decimals may round it.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn allocate(&mut self, directory: &Directory, layers: Vec<f64>) -> Result<Vec<f64>> {
        self.layers = Some(layers);
        self.write(directory)?;
        Ok(Self::read(directory)?.and_then(|journal| journal.layers).expect("it was just written"))
    }

    /// The directory is complete.
    ///
    /// # Errors
    /// If the file cannot be removed.
    pub fn remove(self, directory: &Directory) -> Result<()> {
        let path = directory.path().join(Self::NAME);
        std::fs::remove_file(&path).map_err(Error::io(&path))
    }

    /// None if it is not what this library writes.
    fn read(directory: &Directory) -> Result<Option<Self>> {
        Ok(serde_json::from_value(read_json(&directory.path().join(Self::NAME))?).ok())
    }

    fn write(&self, directory: &Directory) -> Result<()> {
        directory.text(Self::NAME, &pretty(self))
    }
}
