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
pub(crate) mod avx512_int4;
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
