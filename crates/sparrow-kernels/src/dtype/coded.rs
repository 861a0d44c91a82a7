//! Types whose rows are small integers, *codes*, with scales: one description of each for every kernel.
//!
//! Element i is codeᵢ · factor + offset, both of its group. Kernels multiply the codes of 32 elements at a time, and
//! take the scales of 256 at a time. Int8 with one scale per row is not among them: sums over its whole rows are exact.

use super::types::DType;

/// Elements whose scales are read together: a whole number of groups and of blocks of every type.
pub(crate) const SPAN: usize = 256;
/// Elements whose codes are read together.
pub(crate) const CHUNK: usize = 32;

/// What turns the codes of a span into values, by group; zeros for groups beyond the row.
#[derive(Clone, Copy, Default)]
#[repr(C, align(64))]
pub(crate) struct Scales {
    pub factors: [f32; 16],
    pub offsets: [f32; 16],
}

/// A type of codes.
pub(crate) trait Coded {
    const DTYPE: DType;
    /// Elements that share a scale: 16 or 32.
    const GROUP: usize;
    /// Whether there are offsets; otherwise they are 0 and nobody looks.
    const OFFSETS: bool;

    /// The codes, signed bytes, of chunk number `chunk` of span number `span`. Beyond the last one of the row they are
    /// anything. Where `chunk` is a constant, so are shifts and offsets.
    ///
    /// # Safety
    /// The row must be readable and have the chunk's first element; AVX2.
    #[cfg(target_arch = "x86_64")]
    unsafe fn codes(row: *const u8, cols: usize, span: usize, chunk: usize) -> std::arch::x86_64::__m256i;

    /// The scales of span number `span`.
    ///
    /// # Safety
    /// The row must be readable and have the span's first element; AVX2 and F16C.
    #[cfg(target_arch = "x86_64")]
    unsafe fn scales(row: *const u8, cols: usize, span: usize, to: &mut Scales);
}

/// Does something for each of `$count` chunks of a span; of a whole span one after the other, with constant numbers and
/// places 0 and 1 taking turns, for sums that are kept apart.
#[cfg(target_arch = "x86_64")]
macro_rules! each_chunk {
    ($count:expr, $chunk:ident, $place:ident => $body:block) => {
        if $count == 8 {
            crate::dtype::coded::each_chunk!(@ $chunk $place $body, 0 0, 1 1, 2 0, 3 1, 4 0, 5 1, 6 0, 7 1)
        } else {
            for $chunk in 0..$count {
                let $place: usize = 0;
                $body
            }
        }
    };
    (@ $chunk:ident $place:ident $body:block, $($number:literal $turn:literal),*) => {{
        $({
            let ($chunk, $place): (usize, usize) = ($number, $turn);
            $body
        })*
    }};
}
#[cfg(target_arch = "x86_64")]
pub(crate) use each_chunk;
