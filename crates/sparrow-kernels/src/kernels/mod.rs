//! The raw loops, a folder each: what a kernel is told and must do is in `mod.rs`, its tiers are in `scalar.rs`,
//! `avx2.rs`, `avx512.rs` and `amx.rs`, and what tiers share is beside them. The [`table`](crate::table) lists them
//! all.

pub(crate) mod activation;
pub(crate) mod attention;
pub(crate) mod axpy;
pub(crate) mod bitmap_axpy;
pub(crate) mod bitmap_dot;
pub(crate) mod decode_codes;
pub(crate) mod dot;
pub(crate) mod dot_codes;
pub(crate) mod dot_int8;
pub(crate) mod encode;
pub(crate) mod expand;
pub(crate) mod gemm;
pub(crate) mod integer;
pub(crate) mod norm;
pub(crate) mod probe;
pub(crate) mod prune;
pub(crate) mod rope;
pub(crate) mod select;
pub(crate) mod sign;
pub(crate) mod softmax;
