//! Everything that defines a row of the benchmark, as plain JSON.

use std::path::PathBuf;

use anyhow::bail;
use serde::{Deserialize, Serialize};
use sparrow::{DType, KvOptions, SelectorSpec};
use sparrow_kernels::available_memory;

use crate::output;

/// Everything that defines a row.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Job {
    pub source: Source,
    /// Where the weights are; `None`: mapped.
    pub weights: Option<String>,
    /// Of the weights; `None`: as they are stored.
    pub dtype: Option<String>,
    /// How matrices are kept; `None`: `auto`.
    pub weights_format: Option<String>,
    pub kv: Kv,
    #[serde(with = "selector_text")]
    pub selector: SelectorSpec,
    pub prompt_tokens: usize,
    pub gen_tokens: usize,
    pub batch: usize,
    pub threads: Option<u16>,
    /// Instruction set tier; `None`: the best that `SPARROW_ISA` allows.
    pub isa: Option<String>,
}

impl Job {
    /// Bytes of weights that the worker will make up in memory; `None` for a directory, whose weights are mapped.
    ///
    /// # Errors
    /// If shape or element type are not known.
    pub fn random_weight_bytes(&self) -> anyhow::Result<Option<u64>> {
        let Source::Shape { name, zeros } = &self.source else { return Ok(None) };
        let dtype: DType = self.dtype.as_deref().unwrap_or("bf16").parse().map_err(anyhow::Error::msg)?;
        let parameters = sparrow_tools::shapes::spec(name)?.parameters() as f64;
        let whole = parameters * dtype.row_bytes(1 << 10) as f64 / f64::from(1 << 10);
        let packed = whole * (1.0 - zeros) + parameters / 8.0;
        let may_pack = self.weights_format.as_deref() != Some("dense");
        Ok(Some(if may_pack { whole.min(packed) } else { whole } as u64))
    }

    /// Refuses weights that do not fit the memory that is available now.
    ///
    /// # Errors
    /// Says how much is missing.
    pub fn check_memory(&self) -> anyhow::Result<()> {
        let (Some(needed), Some(available)) = (self.random_weight_bytes()?, available_memory()) else {
            return Ok(());
        };
        if needed as f64 * 1.05 > available as f64 {
            bail!(
                "the weights need {}, but {} of memory are available: choose a smaller shape or element type",
                output::bytes(needed),
                output::bytes(available)
            );
        }
        Ok(())
    }
}

/// A directory with a text for its tokenizer (checkpoints without a tokenizer get arbitrary tokens), or random weights.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Source {
    Directory {
        dir: PathBuf,
        text: PathBuf,
    },
    /// `zeros` is the fraction of the weights of layers and head that are 0.
    Shape {
        name: String,
        zeros: f64,
    },
}

/// [`KvOptions`] as text.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Kv {
    dtype: Option<String>,
    sparsity: Option<String>,
    dense_tail: usize,
    sinks: usize,
}

impl From<KvOptions> for Kv {
    fn from(options: KvOptions) -> Self {
        let KvOptions { dtype, sparsity, dense_tail, sinks } = options;
        Kv { dtype: dtype.map(|d| d.to_string()), sparsity: sparsity.map(|s| s.to_string()), dense_tail, sinks }
    }
}

impl Kv {
    /// The options of a session.
    pub fn options(&self) -> anyhow::Result<KvOptions> {
        let &Kv { ref dtype, ref sparsity, dense_tail, sinks } = self;
        let dtype = dtype.as_deref().map(str::parse).transpose()?;
        let sparsity = sparsity.as_deref().map(str::parse).transpose()?;
        Ok(KvOptions { dtype, sparsity, dense_tail, sinks })
    }
}

/// A selector as its text, so that a job is plain JSON.
mod selector_text {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};
    use sparrow::SelectorSpec;

    pub fn serialize<S: Serializer>(selector: &SelectorSpec, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(selector)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<SelectorSpec, D::Error> {
        String::deserialize(d)?.parse().map_err(D::Error::custom)
    }
}
