//! `decode_codes` in portable Rust.

use super::DecodeCodes;
use crate::dtype::coded::SPAN;
use crate::dtype::{Coded, part};

/// # Safety
/// See [`DecodeCodesFn`](super::DecodeCodesFn).
pub(crate) unsafe fn decode_codes_scalar<F: Coded>(a: &DecodeCodes) {
    // SAFETY: the caller guarantees the row and the results.
    let (row, out) = unsafe {
        (std::slice::from_raw_parts(a.row, F::DTYPE.row_bytes(a.cols)), std::slice::from_raw_parts_mut(a.out, a.count))
    };
    for (span, out) in out.chunks_mut(SPAN).enumerate() {
        part(F::DTYPE, row, a.cols, a.c + span * SPAN, out);
    }
}
