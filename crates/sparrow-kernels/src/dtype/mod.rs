//! Element types of stored tensors, and views of weights in them.

pub(crate) mod bitmap;
mod block;
mod convert;
pub(crate) mod layout;
mod matrix;
pub(crate) mod quantized;
mod stored;
mod types;

pub use bitmap::{Bitmap, BitmapError, BitmapParts};
pub use block::BlockFormat;
pub(crate) use convert::element;
pub use convert::{decode, encode};
pub use matrix::Matrix;
pub use quantized::{assemble_int4, assemble_int8};
pub use stored::Stored;
pub(crate) use types::{BF16, F16, F32, I4G32, I4G32Z, I4G128, I4G128Z, I8, TYPES, code_size};
pub use types::{DType, UnknownDType};
