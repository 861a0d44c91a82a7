//! The element types.

use std::fmt;
use std::str::FromStr;

/// How the numbers of a stored tensor are written, little-endian.
///
/// The names of the float types are those of the safetensors format in lower case. In a quantised type a row is
/// complete in itself: its elements, then what scales them, so rows can be gathered one by one. See
/// `dtype/layout.rs` for the layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum DType {
    /// IEEE 754 binary32.
    F32 = 0,
    /// IEEE 754 binary16: 5 bits of exponent, 10 of fraction.
    F16 = 1,
    /// bfloat16: the upper half of a binary32.
    BF16 = 2,
    /// 8-bit integers and one `f32` scale per row.
    I8 = 3,
    /// 4-bit integers less 8, an `f16` scale per group of 32.
    I4G32 = 4,
    /// 4-bit integers less a zero point, an `f16` scale and a zero point per group of 32.
    I4G32Z = 5,
    /// As [`I4G32`](Self::I4G32) in groups of 128.
    I4G128 = 6,
    /// As [`I4G32Z`](Self::I4G32Z) in groups of 128.
    I4G128Z = 7,
}

/// [`DType::F32`] as a constant generic argument of a kernel.
pub(crate) const F32: u8 = DType::F32 as u8;
/// [`DType::F16`] as a constant generic argument of a kernel.
pub(crate) const F16: u8 = DType::F16 as u8;
/// [`DType::BF16`] as a constant generic argument of a kernel.
pub(crate) const BF16: u8 = DType::BF16 as u8;
/// [`DType::I8`] as a constant generic argument of a kernel.
pub(crate) const I8: u8 = DType::I8 as u8;
/// [`DType::I4G32`] as a constant generic argument of a kernel.
pub(crate) const I4G32: u8 = DType::I4G32 as u8;
/// [`DType::I4G32Z`] as a constant generic argument of a kernel.
pub(crate) const I4G32Z: u8 = DType::I4G32Z as u8;
/// [`DType::I4G128`] as a constant generic argument of a kernel.
pub(crate) const I4G128: u8 = DType::I4G128 as u8;
/// [`DType::I4G128Z`] as a constant generic argument of a kernel.
pub(crate) const I4G128Z: u8 = DType::I4G128Z as u8;

/// The number of types: tables of kernels have one entry for each.
pub(crate) const TYPES: usize = DType::ALL.len();

/// Bytes from one element to the next, of the type whose discriminant is `code`.
pub(crate) const fn code_size(code: u8) -> usize {
    match code {
        F32 => 4,
        F16 | BF16 => 2,
        I8 => 1,
        _ => panic!("two int4 elements share a byte"),
    }
}

impl DType {
    /// Every type, in the order of the discriminants.
    pub const ALL: [DType; 8] =
        [DType::F32, DType::F16, DType::BF16, DType::I8, DType::I4G32, DType::I4G32Z, DType::I4G128, DType::I4G128Z];

    /// The types whose elements stand alone.
    pub const FLOATS: [DType; 3] = [DType::F32, DType::F16, DType::BF16];

    /// Whether elements share scales, so that only whole rows can be read or written.
    pub const fn is_quantized(self) -> bool {
        self as u8 >= I8
    }

    /// The name: `f32`, `f16`, `bf16`, `int8`, `int4`, `int4-zero`, `int4-g128` or `int4-g128-zero`.
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
            _ => DType::ALL.into_iter().find(|t| t.name() == lower).ok_or_else(|| UnknownDType(name.to_string())),
        }
    }
}
