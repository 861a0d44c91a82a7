//! torch's element types.

use std::fmt;

use sparrow_kernels::DType;

/// An element type of torch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScalarType {
    /// 4 bytes.
    Float32,
    /// 2 bytes.
    Float16,
    /// 2 bytes.
    BFloat16,
    /// 8 bytes; of no use here.
    Float64,
    /// 1 byte.
    Int8,
    /// 1 byte.
    UInt8,
    /// 4 bytes; of no use here.
    Int32,
    /// 8 bytes.
    Int64,
    /// 1 byte, 0 or 1.
    Bool,
    /// One without a name here.
    Other,
}

impl ScalarType {
    /// Those that have a name, and the name.
    pub const KNOWN: [(ScalarType, &'static str); 9] = [
        (ScalarType::Float32, "float32"),
        (ScalarType::Float16, "float16"),
        (ScalarType::BFloat16, "bfloat16"),
        (ScalarType::Float64, "float64"),
        (ScalarType::Int8, "int8"),
        (ScalarType::UInt8, "uint8"),
        (ScalarType::Int32, "int32"),
        (ScalarType::Int64, "int64"),
        (ScalarType::Bool, "bool"),
    ];

    /// Bytes of an element; 0 of those that nothing is read of.
    pub fn size(self) -> usize {
        match self {
            ScalarType::Int64 | ScalarType::Float64 => 8,
            ScalarType::Float32 | ScalarType::Int32 => 4,
            ScalarType::Float16 | ScalarType::BFloat16 => 2,
            ScalarType::Int8 | ScalarType::UInt8 | ScalarType::Bool => 1,
            ScalarType::Other => 0,
        }
    }

    /// The kernels' name for a type of floats.
    pub fn float(self) -> Option<DType> {
        match self {
            ScalarType::Float32 => Some(DType::F32),
            ScalarType::Float16 => Some(DType::F16),
            ScalarType::BFloat16 => Some(DType::BF16),
            _ => None,
        }
    }
}

impl fmt::Display for ScalarType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = Self::KNOWN.iter().find(|(known, _)| known == self).map(|(_, name)| *name);
        f.write_str(name.unwrap_or("another type"))
    }
}
