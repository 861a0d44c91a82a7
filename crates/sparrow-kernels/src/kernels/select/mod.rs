//! Which neurons are active: thresholds, bitmaps and lists of indices.
//!
//! A bitmap of n bits is ⌈n/64⌉ words; bit i is bit i % 64 of word i / 64, and bits from n on are zero.

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;
pub(crate) mod kth;
pub(crate) mod scalar;
