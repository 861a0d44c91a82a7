//! Bytes with a shape: matrices stored whole or as a bitmap, mapped from a file or in memory.

mod bitmap;
pub mod damage;
mod dense;
pub mod read;
pub mod room;
mod storage;
mod weight;

pub use bitmap::BitmapTensor;
pub use dense::Tensor;
pub use storage::{Bytes, MappedFile, Memory};
pub use weight::Weight;
