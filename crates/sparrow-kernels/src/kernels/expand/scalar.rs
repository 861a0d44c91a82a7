//! `expand` in portable Rust.

use crate::rows::expand::{Expand, ZEROS};

/// # Safety
/// See [`ExpandFn`](crate::rows::expand::ExpandFn).
#[inline(always)]
unsafe fn expand<const SIZE: usize>(a: &Expand) -> *const u8 {
    let mut values = a.values;
    for i in (0..a.len).step_by(8) {
        // SAFETY: i < len; each set bit below len has a stored element, and `to` has len elements.
        unsafe {
            let bits = a.bits::<1>(i);
            for bit in 0..(a.len - i).min(8) {
                let to = a.to.add((i + bit) * SIZE);
                if bits >> bit & 1 == 1 {
                    values.copy_to_nonoverlapping(to, SIZE);
                    values = values.add(SIZE);
                } else {
                    to.write_bytes(0, SIZE);
                }
            }
        }
    }
    values
}

/// # Safety
/// See [`ExpandFn`](crate::rows::expand::ExpandFn).
pub(crate) unsafe fn expand_4_bits_scalar(a: &Expand) -> *const u8 {
    let mut values = a.values;
    for i in (0..a.len).step_by(32) {
        // SAFETY: i < len; the set bits of a block have their nibbles in whole bytes, and `to` has whole blocks.
        unsafe {
            let bits = a.bits::<4>(i);
            let block = std::slice::from_raw_parts_mut(a.to.add(i / 2), 16);
            block.fill(ZEROS);
            let mut stored = 0;
            for bit in (0..32).filter(|bit| bits >> bit & 1 == 1) {
                let code = *values.add(stored / 2) >> (stored % 2 * 4) & 0xf;
                let half = bit / 16 * 4;
                block[bit % 16] = block[bit % 16] & !(0xf << half) | code << half;
                stored += 1;
            }
            values = values.add(stored.div_ceil(2));
        }
    }
    values
}

macro_rules! kernels {
    ($($name:ident: $size:literal;)*) => {$(
        /// # Safety
        /// See [`ExpandFn`](crate::rows::expand::ExpandFn).
        pub(crate) unsafe fn $name(a: &Expand) -> *const u8 {
            // SAFETY: the contract is the caller's.
            unsafe { expand::<$size>(a) }
        }
    )*};
}

kernels! {
    expand_8_bits_scalar: 1;
    expand_16_bits_scalar: 2;
    expand_32_bits_scalar: 4;
}
