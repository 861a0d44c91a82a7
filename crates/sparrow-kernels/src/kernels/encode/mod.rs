//! Storing keys and values: rows of `f32` narrowed to the type of the cache.

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;
#[cfg(target_arch = "x86_64")]
mod lanes;
pub(crate) mod scalar;

/// Writes one row; the same bytes as [`encode`](crate::encode).
///
/// # Safety
/// The CPU must have the kernel's features. The lengths must match, which safe code checks.
pub(crate) type EncodeFn = unsafe fn(&[f32], &mut [u8]);
