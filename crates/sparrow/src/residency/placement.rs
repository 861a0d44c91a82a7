//! Where the weights of a model are while it runs.

use std::fmt;
use std::str::FromStr;

use super::pool::CacheSpec;

/// Where the weights of a model are while it runs, `ram`, `mmap` or `cache:FRACTION[,POLICY][,prefer=G][,mmap]`.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum Placement {
    /// In mapped files, whose pages the system loads when they are touched and may drop again. A file that is truncated
    /// while it is mapped ends the process with SIGBUS: only the other two report it.
    #[default]
    Mapped,
    /// Read into memory when the model is loaded.
    Memory,
    /// Attention, embeddings and norms in memory; of each layer's MLP a pool of neurons that follows the active set, the others
    /// read from the file when they are wanted: for models larger than memory.
    Cache(CacheSpec),
}

impl fmt::Display for Placement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Placement::Mapped => f.write_str("mmap"),
            Placement::Memory => f.write_str("ram"),
            Placement::Cache(spec) => write!(f, "cache:{spec}"),
        }
    }
}

impl FromStr for Placement {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match (text, text.strip_prefix("cache:")) {
            ("mmap", _) => Ok(Placement::Mapped),
            ("ram", _) => Ok(Placement::Memory),
            (_, Some(spec)) => Ok(Placement::Cache(spec.parse()?)),
            _ => Err(format!("unknown place for weights {text:?}: use ram, mmap or cache:FRACTION[,POLICY]")),
        }
    }
}
