//! Blocks whose codes of four bits stand for values that are not evenly spaced.

use super::format::{BlockFormat, half_at, nibbles};

/// What the codes stand for.
const VALUES: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// 32 numbers with one scale.
pub const IQ4_NL: BlockFormat = BlockFormat {
    name: "IQ4_NL",
    elements: 32,
    bytes: 18,
    decode: |block, out| {
        let scale = half_at(block, 0);
        for (out, code) in out.iter_mut().zip(nibbles(&block[2..])) {
            *out = scale * f32::from(VALUES[usize::from(code)]);
        }
    },
};

/// 256 numbers in 8 groups with scales of six bits: two high bits of all, four low bits of all, then the codes.
pub const IQ4_XS: BlockFormat = BlockFormat {
    name: "IQ4_XS",
    elements: 256,
    bytes: 136,
    decode: |block, out| {
        let scale = half_at(block, 0);
        let high = u16::from_le_bytes([block[2], block[3]]);
        for (group, out) in out.chunks_exact_mut(32).enumerate() {
            let low = block[4 + group / 2] >> (4 * (group % 2)) & 0xf;
            let six = low | ((high >> (2 * group) & 3) as u8) << 4;
            let factor = scale * f32::from(six as i8 - 32);
            for (out, code) in out.iter_mut().zip(nibbles(&block[8 + 16 * group..][..16])) {
                *out = factor * f32::from(VALUES[usize::from(code)]);
            }
        }
    },
};
