//! Element types of stored tensors, and views of weights in them.

mod convert;
mod matrix;

pub(crate) use convert::element;
pub use convert::{decode, encode};
pub use matrix::Matrix;

use std::fmt;
use std::str::FromStr;

/// How one number of a stored tensor is written, little-endian.
///
/// The names are those of the safetensors format in lower case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum DType {
    /// IEEE 754 binary32.
    F32 = 0,
    /// IEEE 754 binary16: 5 bits of exponent, 10 of fraction.
    F16 = 1,
    /// bfloat16: the upper half of a binary32.
    BF16 = 2,
}

/// [`DType::F32`] as a constant generic argument of a kernel.
pub(crate) const F32: u8 = DType::F32 as u8;
/// [`DType::F16`] as a constant generic argument of a kernel.
pub(crate) const F16: u8 = DType::F16 as u8;
/// [`DType::BF16`] as a constant generic argument of a kernel.
pub(crate) const BF16: u8 = DType::BF16 as u8;

/// Bytes of one element of the type whose discriminant is `code`.
pub(crate) const fn code_size(code: u8) -> usize {
    if code == F32 { 4 } else { 2 }
}

impl DType {
    /// Every type, in the order of the discriminants.
    pub const ALL: [DType; 3] = [DType::F32, DType::F16, DType::BF16];

    /// Bytes of one element.
    pub const fn size_of(self) -> usize {
        code_size(self as u8)
    }

    /// The name: `f32`, `f16` or `bf16`.
    pub const fn name(self) -> &'static str {
        match self {
            DType::F32 => "f32",
            DType::F16 => "f16",
            DType::BF16 => "bf16",
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
        write!(f, "unknown element type {:?}: expected f32, f16 or bf16", self.0)
    }
}

impl std::error::Error for UnknownDType {}

impl FromStr for DType {
    type Err = UnknownDType;

    /// Accepts the short names and those of `config.json` (`float32`, `float16`, `bfloat16`), in any case.
    fn from_str(name: &str) -> Result<Self, UnknownDType> {
        match name.to_ascii_lowercase().as_str() {
            "f32" | "float32" | "float" => Ok(DType::F32),
            "f16" | "float16" | "half" => Ok(DType::F16),
            "bf16" | "bfloat16" => Ok(DType::BF16),
            _ => Err(UnknownDType(name.to_string())),
        }
    }
}
