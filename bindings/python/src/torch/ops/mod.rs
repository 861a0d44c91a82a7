//! The operators, a file for each or for a few that belong together.

mod activation;
mod active;
mod dense_linear;
mod int8_linear;
mod linear;
mod pack;
mod select;
mod sparse_attention;
mod sparse_linear;
mod sparse_mlp;
mod update_pool;

use super::shim::Registration;

/// All of them.
pub const ALL: &[Registration] = &[
    Registration::of::<dense_linear::DenseLinear>(),
    Registration::of::<int8_linear::Int8Linear>(),
    Registration::of::<int8_linear::QuantizeInt8>(),
    Registration::of::<pack::Pack>(),
    Registration::of::<sparse_linear::SparseLinear>(),
    Registration::of::<select::Select>(),
    Registration::of::<sparse_mlp::SparseMlp>(),
    Registration::of::<sparse_mlp::SparseMlpForward>(),
    Registration::of::<sparse_attention::PackKv>(),
    Registration::of::<sparse_attention::SparseAttentionDecode>(),
    Registration::of::<update_pool::UpdatePool>(),
];
