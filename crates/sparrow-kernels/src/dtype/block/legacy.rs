//! Blocks of 32 numbers with one scale, and a smallest value where the name ends in 1.

use super::format::{BlockFormat, half_at, nibbles};

const ELEMENTS: usize = 32;

/// Scale, 16 bytes of two codes each: the value less 8.
pub const Q4_0: BlockFormat = BlockFormat {
    name: "Q4_0",
    elements: ELEMENTS,
    bytes: 18,
    decode: |block, out| {
        let scale = half_at(block, 0);
        for (out, code) in out.iter_mut().zip(nibbles(&block[2..])) {
            *out = scale * f32::from(code as i8 - 8);
        }
    },
};

/// Scale, smallest value, 16 bytes of two codes each.
pub const Q4_1: BlockFormat = BlockFormat {
    name: "Q4_1",
    elements: ELEMENTS,
    bytes: 20,
    decode: |block, out| {
        let (scale, least) = (half_at(block, 0), half_at(block, 2));
        for (out, code) in out.iter_mut().zip(nibbles(&block[4..])) {
            *out = scale * f32::from(code) + least;
        }
    },
};

/// Scale, the highest bits of the 32 codes, then the rest of them as in [`Q4_0`]: the value less 16.
pub const Q5_0: BlockFormat = BlockFormat {
    name: "Q5_0",
    elements: ELEMENTS,
    bytes: 22,
    decode: |block, out| {
        let scale = half_at(block, 0);
        for (out, code) in out.iter_mut().zip(five_bits(&block[2..])) {
            *out = scale * f32::from(code as i8 - 16);
        }
    },
};

/// Scale, smallest value, the highest bits of the 32 codes, then the rest of them.
pub const Q5_1: BlockFormat = BlockFormat {
    name: "Q5_1",
    elements: ELEMENTS,
    bytes: 24,
    decode: |block, out| {
        let (scale, least) = (half_at(block, 0), half_at(block, 2));
        for (out, code) in out.iter_mut().zip(five_bits(&block[4..])) {
            *out = scale * f32::from(code) + least;
        }
    },
};

/// Scale, 32 signed bytes.
pub const Q8_0: BlockFormat = BlockFormat {
    name: "Q8_0",
    elements: ELEMENTS,
    bytes: 34,
    decode: |block, out| {
        let scale = half_at(block, 0);
        for (out, &code) in out.iter_mut().zip(&block[2..]) {
            *out = f32::from(code as i8) * scale;
        }
    },
};

/// Codes of five bits: four bytes of highest bits, then nibbles.
fn five_bits(bytes: &[u8]) -> impl Iterator<Item = u8> + '_ {
    let high = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    nibbles(&bytes[4..]).enumerate().map(move |(i, low)| low | ((high >> i & 1) as u8) << 4)
}
