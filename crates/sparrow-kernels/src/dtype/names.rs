//! What types are called, and which of them are rows of blocks.

use super::block::{BLOCKS, BlockFormat};
use super::types::DType;
use std::fmt;
use std::str::FromStr;

impl DType {
    /// Whether [`encode`](crate::encode) can write it: of GGML's types only [`Q8_0`](Self::Q8_0).
    pub fn is_writable(self) -> bool {
        self.block().is_none_or(|format| format.encode.is_some())
    }

    /// The blocks that a row consists of, if it does.
    pub const fn block(self) -> Option<&'static BlockFormat> {
        match (self as usize).checked_sub(DType::Q4_0 as usize) {
            Some(index) => Some(&BLOCKS[index]),
            None => None,
        }
    }

    /// The name: `f32`, `f16`, `bf16`, `int8`, `int4`, `int4-zero`, `int4-g128`, `int4-g128-zero`, or that of its blocks.
    pub const fn name(self) -> &'static str {
        match self {
            DType::F32 => "f32",
            DType::F16 => "f16",
            DType::BF16 => "bf16",
            DType::I8 => "int8",
            DType::I4G32 => "int4",
            DType::I4G32Z => "int4-zero",
            DType::I4G128 => "int4-g128",
            DType::I4G128Z => "int4-g128-zero",
            blocks => match blocks.block() {
                Some(format) => format.name,
                None => unreachable!(),
            },
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A name that is no [`DType`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownDType(pub String);

impl fmt::Display for UnknownDType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = DType::ALL.map(DType::name).join(", ");
        write!(f, "unknown element type {:?}: expected one of {names}", self.0)
    }
}

impl std::error::Error for UnknownDType {}

impl FromStr for DType {
    type Err = UnknownDType;

    /// Accepts the short names and, of floats, those of `config.json` (`float32`, `float16`, `bfloat16`), in any case.
    fn from_str(name: &str) -> Result<Self, UnknownDType> {
        let lower = name.to_ascii_lowercase();
        match lower.as_str() {
            "float32" | "float" => Ok(DType::F32),
            "float16" | "half" => Ok(DType::F16),
            "bfloat16" => Ok(DType::BF16),
            _ => DType::ALL
                .into_iter()
                .find(|t| t.name().eq_ignore_ascii_case(name))
                .ok_or_else(|| UnknownDType(name.to_string())),
        }
    }
}
