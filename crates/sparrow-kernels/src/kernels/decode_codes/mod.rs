//! `decode_codes`: elements of a row of codes as `f32`.

pub(crate) mod scalar;

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;

/// The arguments of a `decode_codes` kernel: `count` elements from `c` on of a row of `cols`.
#[derive(Clone, Copy)]
pub(crate) struct DecodeCodes {
    pub row: *const u8,
    pub cols: usize,
    /// A multiple of [`SPAN`](crate::dtype::coded::SPAN).
    pub c: usize,
    pub count: usize,
    /// Overwritten.
    pub out: *mut f32,
}

/// A `decode_codes` kernel. Each element is within 2⁻²³ · (|code · factor| + |offset|) of what [`decode`](crate::decode)
/// makes of it.
///
/// # Safety
/// The CPU must have the kernel's features, the row be readable and have the elements, and `out` be writable for them.
pub(crate) type DecodeCodesFn = unsafe fn(&DecodeCodes);
