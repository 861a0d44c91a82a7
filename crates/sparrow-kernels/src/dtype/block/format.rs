//! What a block format is.

/// How the numbers of a block are written, as [GGML](https://github.com/ggml-org/ggml) defines it.
#[derive(Debug, Clone, Copy)]
pub struct BlockFormat {
    /// What it is called, as in `Q4_K`.
    pub name: &'static str,
    /// Numbers in a block.
    pub elements: usize,
    /// Bytes of a block.
    pub bytes: usize,
    /// Writes the numbers of one block.
    pub(super) decode: fn(block: &[u8], out: &mut [f32]),
}

/// The binary16 number at `at`.
pub(super) fn half_at(block: &[u8], at: usize) -> f32 {
    half::f16::from_le_bytes([block[at], block[at + 1]]).to_f32_const()
}

/// Low halves of the bytes, then their high halves.
pub(super) fn nibbles(bytes: &[u8]) -> impl Iterator<Item = u8> + '_ {
    bytes.iter().map(|byte| byte & 0xf).chain(bytes.iter().map(|byte| byte >> 4))
}
