//! Rows as kernels see them: of weights, stored densely or as bitmaps, and of activations; and the steps they are read
//! in.

mod bitmap;
mod dense;
pub(crate) mod expand;
pub(crate) mod int16;
mod set;
mod steps;

pub(crate) use bitmap::BitmapRows;
pub(crate) use dense::Rows;
pub(crate) use expand::Expander;
pub(crate) use int16::{Int16Activations, Int16Rows, LARGEST};
pub(crate) use set::RowSet;
pub(crate) use steps::{COLUMN_STEP, FEW, STEP};
