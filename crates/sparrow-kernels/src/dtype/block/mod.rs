//! Types of weights in blocks that carry their own scales: GGML's, as GGUF files hold them, one description each.
//!
//! A new one is an implementation of [`Block`], a variant of [`DType`], and an entry of [`BLOCKS`] and of
//! [`by_type`](super::by_type).

#![allow(non_camel_case_types)] // The names that everybody knows.

mod format;
mod four_bit_table;
mod k_quants;
mod legacy;

use super::types::DType;
pub(crate) use format::Block;
pub use format::BlockFormat;
#[cfg(target_arch = "x86_64")]
pub(crate) use format::{nibble_words, nibbles_of};
pub(crate) use four_bit_table::*;
pub(crate) use k_quants::*;
pub(crate) use legacy::*;

/// Every format, in the order of [`DType`], whose last variants they are.
pub(crate) const BLOCKS: [BlockFormat; 12] = [
    Q4_0::FORMAT,
    Q4_1::FORMAT,
    Q5_0::FORMAT,
    Q5_1::FORMAT,
    Q8_0::FORMAT,
    Q2_K::FORMAT,
    Q3_K::FORMAT,
    Q4_K::FORMAT,
    Q5_K::FORMAT,
    Q6_K::FORMAT,
    IQ4_NL::FORMAT,
    IQ4_XS::FORMAT,
];

impl BlockFormat {
    /// The numbers of whole blocks, or of all but the last ones of the last block, each product and sum rounded to `f32`
    /// in the order that GGML's reference has.
    ///
    /// # Panics
    /// If `bytes` is not as long as the blocks are.
    pub fn decode(&self, bytes: &[u8], out: &mut [f32]) {
        assert_eq!(bytes.len(), self.row_bytes(out.len()), "{}: bytes of other blocks", self.name);
        let (whole, rest) = out.split_at_mut(out.len() / self.elements * self.elements);
        let mut blocks = bytes.chunks_exact(self.bytes);
        for (out, block) in whole.chunks_exact_mut(self.elements).zip(&mut blocks) {
            (self.decode)(block, out);
        }
        if let Some(block) = blocks.next() {
            let mut all = [0.0; super::coded::SPAN];
            (self.decode)(block, &mut all[..self.elements]);
            rest.copy_from_slice(&all[..rest.len()]);
        }
    }

    /// Bytes of a row of `cols` numbers: whole blocks.
    pub const fn row_bytes(&self, cols: usize) -> usize {
        cols.div_ceil(self.elements) * self.bytes
    }

    /// The type that it is.
    pub fn dtype(&self) -> DType {
        DType::ALL
            .into_iter()
            .find(|dtype| dtype.block().is_some_and(|format| format.name == self.name))
            .expect("every format is a type")
    }
}
