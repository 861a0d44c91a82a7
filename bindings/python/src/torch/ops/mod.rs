//! The operators, a file for each or for a few that belong together.

mod dense_linear;
mod int8_linear;
mod linear;
mod pack;
mod sparse_linear;

use super::shim::Registration;

/// All of them.
pub const ALL: &[Registration] = &[
    Registration::of::<dense_linear::DenseLinear>(),
    Registration::of::<int8_linear::Int8Linear>(),
    Registration::of::<int8_linear::QuantizeInt8>(),
    Registration::of::<pack::Pack>(),
    Registration::of::<sparse_linear::SparseLinear>(),
];
