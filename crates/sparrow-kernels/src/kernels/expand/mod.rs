//! `expand`: rows of a [`Bitmap`](crate::Bitmap), or parts of them, as dense rows.
//!
//! Where no kernel multiplies a bitmap as it is, rows are expanded into scratch that stays in a cache and multiplied by
//! the kernels of dense rows: the results are those of the dense matrix, bit for bit.

pub(crate) mod scalar;

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;
