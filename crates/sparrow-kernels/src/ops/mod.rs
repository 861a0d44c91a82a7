//! The operations. Each folder states its equation, shapes and tolerance in `mod.rs`; the other files are one tier each.

pub(crate) mod activation;
mod add_rows;
pub(crate) mod attention;
pub(crate) mod axpy;
pub(crate) mod bitmap_axpy;
pub(crate) mod bitmap_dot;
pub(crate) mod dot;
pub(crate) mod dot_int8;
pub(crate) mod encode;
pub(crate) mod expand;
pub(crate) mod gemm;
pub(crate) mod linear;
pub(crate) mod linear_in_out;
pub(crate) mod norm;
pub(crate) mod pack;
mod products;
pub(crate) mod quantize;
pub(crate) mod rope;
mod row_set;
pub(crate) mod select;
pub(crate) mod sign;
pub(crate) mod softmax;
pub(crate) mod sparse_kv;
pub(crate) mod sparse_mlp;
pub(crate) mod sparse_mlp_integer;
pub(crate) mod transpose;
