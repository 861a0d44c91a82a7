//! Element types of stored tensors, and views of weights in them.

pub(crate) mod bitmap;
pub(crate) mod block;
mod by_type;
pub(crate) mod coded;
mod convert;
pub(crate) mod int4;
pub(crate) mod layout;
mod matrix;
mod names;
pub(crate) mod quantized;
mod stored;
pub(crate) mod types;

pub use bitmap::{Bitmap, BitmapError, BitmapParts};
pub use block::BlockFormat;
pub(crate) use by_type::by_type;
pub(crate) use coded::Coded;
pub use convert::{decode, encode};
pub(crate) use convert::{element, part};
pub use matrix::Matrix;
pub use names::UnknownDType;
pub use quantized::{assemble_int4, assemble_int8};
pub use stored::Stored;
pub use types::DType;
pub(crate) use types::{BF16, CACHES, F16, F32, I8, TYPES, code_size};
