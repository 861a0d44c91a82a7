//! Loops that show what the machine can do at best.

#[cfg(target_arch = "x86_64")]
pub(crate) mod amx;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;
pub(crate) mod scalar;

/// Parts of a task that are read side by side: from one place at a time a core reads at two thirds of what it can.
pub(crate) const STREAMS: usize = 8;
