//! Formats of weights in blocks that carry their own scales: those of GGUF files, one description each.
//!
//! A block format is not a [`DType`](super::DType): rows of it are turned into one when a model is loaded.

mod format;
mod four_bit_table;
mod k_quants;
mod legacy;

pub use format::BlockFormat;

impl BlockFormat {
    /// Every format, by name.
    pub const ALL: [BlockFormat; 12] = [
        legacy::Q4_0,
        legacy::Q4_1,
        legacy::Q5_0,
        legacy::Q5_1,
        legacy::Q8_0,
        k_quants::Q2_K,
        k_quants::Q3_K,
        k_quants::Q4_K,
        k_quants::Q5_K,
        k_quants::Q6_K,
        four_bit_table::IQ4_NL,
        four_bit_table::IQ4_XS,
    ];

    /// The format of that name.
    pub fn named(name: &str) -> Option<&'static BlockFormat> {
        static ALL: [BlockFormat; BlockFormat::ALL.len()] = BlockFormat::ALL;
        ALL.iter().find(|format| format.name == name)
    }

    /// The numbers of whole blocks, each product and sum rounded to `f32` in the order that GGML's reference has.
    ///
    /// # Panics
    /// If `out` is not a multiple of blocks, or `bytes` is not as long as they are.
    pub fn decode(&self, bytes: &[u8], out: &mut [f32]) {
        assert_eq!(out.len() % self.elements, 0, "{}: not whole blocks", self.name);
        assert_eq!(bytes.len(), out.len() / self.elements * self.bytes, "{}: bytes of other blocks", self.name);
        for (block, out) in bytes.chunks_exact(self.bytes).zip(out.chunks_exact_mut(self.elements)) {
            (self.decode)(block, out);
        }
    }
}
