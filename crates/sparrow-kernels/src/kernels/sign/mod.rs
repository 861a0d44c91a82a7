//! Sign bits: how many products of a dot product are positive, without computing one (SparseInfer, arXiv 2411.12692).

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;
pub(crate) mod scalar;
