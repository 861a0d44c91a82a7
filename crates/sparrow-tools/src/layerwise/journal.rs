//! What an interrupted run leaves beside its finished layers, so that the next one goes on only where it may.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sparrow::internals::checkpoint::{Directory, pretty, read_json};
use sparrow::{Error, Result};

/// The file in a directory under construction, for work with the options `O` that allocates an `A` to each matrix.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Journal<O, A> {
    /// [`VERSION`].
    format_version: u32,
    /// Fingerprint of the model before.
    source: String,
    /// SHA-256 of the text.
    text: String,
    options: O,
    /// What each matrix of each layer was allocated, once it is known and where they differ.
    pub matrices: Option<Vec<Vec<A>>>,
}

const VERSION: u32 = 2;
/// The file's name.
const NAME: &str = "sparrow-journal.json";

impl<O, A> Journal<O, A>
where
    O: Clone + PartialEq + Serialize + DeserializeOwned,
    A: Clone + PartialEq + Serialize + DeserializeOwned,
{
    /// That of the run that `directory` was begun for; a new one in an empty directory. Messages call the work `what`.
    ///
    /// # Errors
    /// If the directory was begun for another run or by something else, or cannot be read or written.
    pub fn open(directory: &Directory, what: &str, source: &str, text: &str, options: &O) -> Result<Self> {
        let wanted = Journal {
            format_version: VERSION,
            source: source.to_owned(),
            text: text.to_owned(),
            options: options.clone(),
            matrices: None,
        };
        let dir = directory.path();
        if dir.join(NAME).is_file() {
            let found = Self::read(directory)?;
            return found.filter(|found| Journal { matrices: None, ..found.clone() } == wanted).ok_or_else(|| {
                let what = format!("holds interrupted {what} of another model or text or with other options");
                Error::option("output", format!("{} {what}: remove it to start anew", dir.display()))
            });
        }
        if directory.has_files()? {
            let message = format!("{} is in the way and holds no interrupted {what}: remove it", dir.display());
            return Err(Error::option("output", message));
        }
        wanted.write(directory)?;
        Ok(wanted)
    }

    /// Notes what each matrix was allocated, and returns it: as it will be read again, for decimals may round it.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn allocate(&mut self, directory: &Directory, matrices: Vec<Vec<A>>) -> Result<Vec<Vec<A>>> {
        self.matrices = Some(matrices);
        self.write(directory)?;
        Ok(Self::read(directory)?.and_then(|journal| journal.matrices).expect("it was just written"))
    }

    /// The directory is complete.
    ///
    /// # Errors
    /// If the file cannot be removed.
    pub fn remove(self, directory: &Directory) -> Result<()> {
        let path = directory.path().join(NAME);
        std::fs::remove_file(&path).map_err(Error::io(&path))
    }

    /// None if it is not what this library writes.
    fn read(directory: &Directory) -> Result<Option<Self>> {
        Ok(serde_json::from_value(read_json(&directory.path().join(NAME))?).ok())
    }

    fn write(&self, directory: &Directory) -> Result<()> {
        directory.text(NAME, &pretty(self))
    }
}
