//! How a session keeps keys and values.

use std::fmt;
use std::str::FromStr;

use sparrow_kernels::DType;

use crate::error::{Error, Result};

/// How a [`Session`](crate::Session) keeps keys and values.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct KvOptions {
    /// Their element type; `None` takes the weights' own, or bf16 if they are quantised.
    pub dtype: Option<DType>,
    /// What is dropped of tokens that are older than the dense tail; `None`: nothing, all stays dense.
    pub sparsity: Option<KvSparsity>,
    /// Last tokens that stay dense in a sparse cache. Older ones are packed 64 at a time: a step begins by packing every block that
    /// is older than the tail by then, and what it adds itself (up to 512 tokens of a prompt) it sees dense.
    pub dense_tail: usize,
    /// First tokens that stay dense in a sparse cache (attention sinks, arXiv 2309.17453).
    pub sinks: usize,
}

impl Default for KvOptions {
    fn default() -> Self {
        KvOptions { dtype: None, sparsity: None, dense_tail: 64, sinks: 4 }
    }
}

/// Fractions of keys and of values that a sparse cache drops, in 0..=1: those of smallest magnitude, per layer, head and block of
/// 64 tokens.
///
/// Written `k=0.3,v=0.5`, or `0.4` for both.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct KvSparsity {
    /// Of keys, after RoPE.
    pub keys: f32,
    /// Of values.
    pub values: f32,
}

impl fmt::Display for KvSparsity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "k={},v={}", self.keys, self.values)
    }
}

impl FromStr for KvSparsity {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = || {
            let message = format!("expected k=FRACTION,v=FRACTION or one FRACTION, each from 0 to 1, found {text:?}");
            Error::option("kv-sparsity", message)
        };
        let fraction = |text: &str| {
            let value: Option<f32> = text.parse().ok();
            value.filter(|v| (0.0..=1.0).contains(v)).ok_or_else(wrong)
        };
        match text.split_once(',') {
            None => fraction(text).map(|both| KvSparsity { keys: both, values: both }),
            Some((keys, values)) => Ok(KvSparsity {
                keys: fraction(keys.strip_prefix("k=").ok_or_else(wrong)?)?,
                values: fraction(values.strip_prefix("v=").ok_or_else(wrong)?)?,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::KvSparsity;

    #[test]
    fn sparsity_is_read_as_it_is_written() {
        let given = KvSparsity { keys: 0.3, values: 0.5 };
        assert_eq!(given.to_string(), "k=0.3,v=0.5");
        assert_eq!("k=0.3,v=0.5".parse::<KvSparsity>().unwrap(), given);
        assert_eq!("0.4".parse::<KvSparsity>().unwrap(), KvSparsity { keys: 0.4, values: 0.4 });
        for wrong in ["", "k=0.3", "v=0.5,k=0.3", "1.5", "-0.1", "k=0.3,v=2", "NaN", "k=0.3,v=0.5,"] {
            let message = wrong.parse::<KvSparsity>().unwrap_err().to_string();
            let expected = format!(
                "kv-sparsity: expected k=FRACTION,v=FRACTION or one FRACTION, each from 0 to 1, found {wrong:?}"
            );
            assert_eq!(message, expected);
        }
    }
}
