//! Building blocks of the vector kernels.
//!
//! [`lanes`] is portable code that the compiler vectorises when it is inlined into a function with target features; the
//! others wrap intrinsics.

pub(crate) mod lanes;
#[cfg(target_arch = "x86_64")]
pub(crate) mod vector;

#[cfg(target_arch = "x86_64")]
pub(crate) mod amx;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512_bitmap;
#[cfg(target_arch = "x86_64")]
pub(crate) mod tiles;

/// Defines kernels whose body is portable code, compiled here with the features of one tier.
///
/// `name = body(arg: Type, …) -> Result;` defines `unsafe fn name(arg: Type, …) -> Result { body(arg, …) }`.
#[cfg(target_arch = "x86_64")]
macro_rules! vectorised {
    ($features:literal: $($name:ident = $body:path, ($($arg:ident: $type:ty),*) $(-> $result:ty)?;)*) => {$(
        /// # Safety
        /// The CPU must have the features.
        #[target_feature(enable = $features)]
        pub(crate) unsafe fn $name($($arg: $type),*) $(-> $result)? {
            $body($($arg),*)
        }
    )*};
}
#[cfg(target_arch = "x86_64")]
pub(crate) use vectorised;

/// Defines functions that wrap an expression in the features of a tier.
///
/// `name(arg: Type, …) -> Result = expression;`, safe where the features are there.
#[cfg(target_arch = "x86_64")]
macro_rules! wrapped {
    ($features:literal: $($name:ident($($arg:ident: $type:ty),*) -> $result:ty = $body:expr;)*) => {$(
        #[inline]
        #[target_feature(enable = $features)]
        pub(crate) fn $name($($arg: $type),*) -> $result {
            $body
        }
    )*};
}
#[cfg(target_arch = "x86_64")]
pub(crate) use wrapped;

/// As [`wrapped`], of expressions that read or write memory.
#[cfg(target_arch = "x86_64")]
macro_rules! wrapped_unsafe {
    ($features:literal: $($name:ident($($arg:ident: $type:ty),*) -> $result:ty = $body:expr;)*) => {$(
        /// # Safety
        /// The memory must be valid for a vector; the CPU must have the features.
        #[inline]
        #[target_feature(enable = $features)]
        pub(crate) unsafe fn $name($($arg: $type),*) -> $result {
            // SAFETY: the contract is the caller's.
            unsafe { $body }
        }
    )*};
}
#[cfg(target_arch = "x86_64")]
pub(crate) use wrapped_unsafe;

/// Asks for the line at `p`, into L2 to be read or into L1 to be written. The address may be any.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(crate) fn prefetch(p: *const u8, write: bool) {
    // SAFETY: a prefetch never faults; PREFETCHW, like PREFETCHT1, does nothing on CPUs that lack it.
    unsafe {
        if write {
            std::arch::asm!("prefetchw [{}]", in(reg) p, options(nostack, readonly, preserves_flags));
        } else {
            std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T1 }>(p.cast());
        }
    }
}
