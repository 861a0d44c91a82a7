//! Narrowing without branches, for the compiler to vectorise.

use crate::dtype::layout::int8_scale_at;
use crate::dtype::quantized::quantize_int8;

#[inline(always)]
pub(super) fn encode_bf16(values: &[f32], out: &mut [u8]) {
    for (value, out) in values.iter().zip(out.as_chunks_mut::<2>().0) {
        let bits = value.to_bits();
        let rounded = (bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16) as u16;
        // A NaN keeps its upper bits, and stays one if the others held what made it one.
        let nan = (bits >> 16) as u16 | 0x40;
        *out = if bits & 0x7fff_ffff > 0x7f80_0000 { nan } else { rounded }.to_le_bytes();
    }
}

#[inline(always)]
pub(super) fn encode_i8(values: &[f32], out: &mut [u8]) {
    let (codes, to) = out.split_at_mut(int8_scale_at(values.len()));
    let scale = quantize_int8(values, codes);
    to.copy_from_slice(&scale.to_le_bytes());
}
