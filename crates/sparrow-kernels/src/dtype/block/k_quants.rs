//! Blocks of 256 numbers in groups of 16 or 32, whose scales are small integers times one scale of the block.

use super::format::{BlockFormat, half_at};

const ELEMENTS: usize = 256;

/// 16 groups: two bits a code; a byte a group, of a scale and a smallest value of four bits each.
pub const Q2_K: BlockFormat = BlockFormat {
    name: "Q2_K",
    elements: ELEMENTS,
    bytes: 84,
    decode: |block, out| {
        let (scales, codes) = (&block[..16], &block[16..80]);
        let (scale, least) = (half_at(block, 80), half_at(block, 82));
        for (group, out) in out.chunks_exact_mut(16).enumerate() {
            let (factor, offset) = (scale * f32::from(scales[group] & 0xf), least * f32::from(scales[group] >> 4));
            for (out, code) in out.iter_mut().zip(two_bits(codes, group)) {
                *out = factor * f32::from(code) - offset;
            }
        }
    },
};

/// 16 groups: three bits a code, the highest apart and inverted; signed scales of six bits.
pub const Q3_K: BlockFormat = BlockFormat {
    name: "Q3_K",
    elements: ELEMENTS,
    bytes: 110,
    decode: |block, out| {
        let (high, codes, scales) = (&block[..32], &block[32..96], &block[96..108]);
        let scale = half_at(block, 108);
        for (group, out) in out.chunks_exact_mut(16).enumerate() {
            let low = scales[group % 8] >> (4 * (group / 8)) & 0xf;
            let top = scales[8 + group % 4] >> (2 * (group / 4)) & 3;
            let factor = scale * f32::from((low | top << 4) as i8 - 32);
            let (first, bit) = (group % 2 * 16, group / 2);
            for (i, (out, code)) in out.iter_mut().zip(two_bits(codes, group)).enumerate() {
                let missing = (high[first + i] >> bit & 1) ^ 1;
                *out = factor * f32::from(code as i8 - (missing << 2) as i8);
            }
        }
    },
};

/// 8 groups: four bits a code; scales and smallest values of six bits each.
pub const Q4_K: BlockFormat = BlockFormat {
    name: "Q4_K",
    elements: ELEMENTS,
    bytes: 144,
    decode: |block, out| {
        let codes = &block[16..];
        for (group, out) in out.chunks_exact_mut(32).enumerate() {
            let (factor, offset) = six_bit_pair(block, group);
            for (out, code) in out.iter_mut().zip(four_bits(codes, group)) {
                *out = factor * f32::from(code) - offset;
            }
        }
    },
};

/// As [`Q4_K`], with a fifth bit of each code.
pub const Q5_K: BlockFormat = BlockFormat {
    name: "Q5_K",
    elements: ELEMENTS,
    bytes: 176,
    decode: |block, out| {
        let (high, codes) = (&block[16..48], &block[48..]);
        for (group, out) in out.chunks_exact_mut(32).enumerate() {
            let (factor, offset) = six_bit_pair(block, group);
            for ((out, low), high) in out.iter_mut().zip(four_bits(codes, group)).zip(high) {
                *out = factor * f32::from(low | (high >> group & 1) << 4) - offset;
            }
        }
    },
};

/// 16 groups: six bits a code, the value less 32; signed scales of eight bits.
pub const Q6_K: BlockFormat = BlockFormat {
    name: "Q6_K",
    elements: ELEMENTS,
    bytes: 210,
    decode: |block, out| {
        let (low, high, scales) = (&block[..128], &block[128..192], &block[192..208]);
        let scale = half_at(block, 208);
        for (group, out) in out.chunks_exact_mut(16).enumerate() {
            let factor = scale * f32::from(scales[group] as i8);
            // Of every 128 numbers, those 64 apart share a byte of low bits, and those 32 apart one of high bits.
            let (half, within) = (group / 8, group % 8);
            let (part, first) = (within / 2, within % 2 * 16);
            let low = &low[half * 64 + part % 2 * 32 + first..];
            let high = &high[half * 32 + first..];
            for (out, (low, high)) in out.iter_mut().zip(low.iter().zip(high)) {
                let code = low >> (4 * (part / 2)) & 0xf | (high >> (2 * part) & 3) << 4;
                *out = factor * f32::from(code as i8 - 32);
            }
        }
    },
};

/// The codes of a group of 16: of every 128 numbers, those 32 apart share a byte.
fn two_bits(codes: &[u8], group: usize) -> impl Iterator<Item = u8> + '_ {
    let (half, within) = (group / 8, group % 8);
    let shift = 2 * (within / 2);
    codes[half * 32 + within % 2 * 16..].iter().map(move |byte| byte >> shift & 3)
}

/// The codes of a group of 32: of every 64 numbers, those 32 apart share a byte.
fn four_bits(codes: &[u8], group: usize) -> impl Iterator<Item = u8> + '_ {
    let shift = 4 * (group % 2);
    codes[group / 2 * 32..].iter().map(move |byte| byte >> shift & 0xf)
}

/// Scale and smallest value of a group of 32, from the head of a [`Q4_K`] or [`Q5_K`] block: two scales of the block, then twelve
/// bytes of eight pairs of six bits.
fn six_bit_pair(block: &[u8], group: usize) -> (f32, f32) {
    let packed = &block[4..16];
    let (scale, least) = match group {
        0..4 => (packed[group] & 0x3f, packed[group + 4] & 0x3f),
        _ => (
            packed[group + 4] & 0xf | packed[group - 4] >> 2 & 0x30,
            packed[group + 4] >> 4 | packed[group] >> 2 & 0x30,
        ),
    };
    (half_at(block, 0) * f32::from(scale), half_at(block, 2) * f32::from(least))
}
