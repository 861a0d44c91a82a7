//! Quantised rows written and read, see [`layout`](super::layout).

use super::layout::{BLOCK, Int4, MIDDLE, int8_row_bytes, int8_scale_at};
use super::types::DType;
use half::f16;

impl Int4 {
    /// Scale and zero point of group `g` of a row.
    #[inline(always)]
    pub(crate) fn scale_zero(self, row: &[u8], cols: usize, g: usize) -> (f32, u8) {
        let at = self.scales_at(cols) + 2 * g;
        let scale = f16::from_le_bytes([row[at], row[at + 1]]).to_f32_const();
        (scale, if self.zero_points { row[self.zeros_at(cols) + g] } else { MIDDLE })
    }

    /// Element `index` of a row.
    #[inline(always)]
    pub(crate) fn element(self, row: &[u8], cols: usize, index: usize) -> f32 {
        let (scale, zero) = self.scale_zero(row, cols, index / self.group);
        let byte = row[index / BLOCK * (BLOCK / 2) + index % (BLOCK / 2)];
        let nibble = if index % BLOCK < BLOCK / 2 { byte & 0xf } else { byte >> 4 };
        (f32::from(nibble) - f32::from(zero)) * scale
    }

    /// Quantises one row: groups with zero points span from their smallest to their largest value (and 0), others put
    /// the value of largest magnitude at -8.
    pub(crate) fn encode(self, values: &[f32], out: &mut [u8]) {
        let cols = values.len();
        let (nibbles, rest) = out.split_at_mut(self.scales_at(cols));
        let (scales, zeros) = rest.split_at_mut(2 * self.groups(cols));
        for (g, (group, nibbles)) in values.chunks(self.group).zip(nibbles.chunks_exact_mut(self.group / 2)).enumerate()
        {
            let (scale, zero) = if self.zero_points { span(group) } else { (symmetric_scale(group), MIDDLE) };
            let stored = f16::from_f32(scale);
            scales[2 * g..2 * g + 2].copy_from_slice(&stored.to_le_bytes());
            if self.zero_points {
                zeros[g] = zero;
            }
            // Quantised by the scale as it is stored.
            let inverse = if stored == f16::ZERO { 0.0 } else { 1.0 / stored.to_f32() };
            let code = |v: f32| ((v * inverse).round_ties_even() + f32::from(zero)).clamp(0.0, 15.0) as u8;
            for (b, block) in nibbles.chunks_exact_mut(BLOCK / 2).enumerate() {
                let mut codes = [zero; BLOCK];
                let from = group.get(b * BLOCK..).unwrap_or_default();
                for (to, &v) in codes.iter_mut().zip(from) {
                    *to = code(v);
                }
                pack_block(&codes, block);
            }
        }
    }
}

fn pack_block(codes: &[u8; BLOCK], out: &mut [u8]) {
    for (j, byte) in out.iter_mut().enumerate() {
        *byte = codes[j] | codes[j + BLOCK / 2] << 4;
    }
}

/// Writes one int8 row from its parts: element i is `codes[i]` · `scale`.
///
/// # Panics
/// If `out` has another length than a row of so many elements.
pub fn assemble_int8(codes: &[i8], scale: f32, out: &mut [u8]) {
    assert_eq!(out.len(), int8_row_bytes(codes.len()), "assemble_int8: length of out");
    let (filled, rest) = out.split_at_mut(codes.len());
    filled.iter_mut().zip(codes).for_each(|(to, &code)| *to = code as u8);
    let (padding, stored) = rest.split_at_mut(rest.len() - size_of::<f32>());
    padding.fill(0);
    stored.copy_from_slice(&scale.to_le_bytes());
}

/// Writes one row of an int4 type from its parts: element i of group g is (`codes[i]` − zero point) · scale, both of
/// `groups[g]`. In types without zero points it is 8, whatever `groups` says.
///
/// # Panics
/// If `dtype` is not an int4 type, a code or zero point is above 15, `groups` are not as many as a row has, or `out`
/// has another length than a row.
pub fn assemble_int4(dtype: DType, codes: &[u8], groups: &[(f16, u8)], out: &mut [u8]) {
    let int4 = Int4::of(dtype as u8);
    let cols = codes.len();
    assert_eq!((out.len(), groups.len()), (int4.row_bytes(cols), int4.groups(cols)), "assemble_int4: lengths");
    assert!(codes.iter().chain(groups.iter().map(|(_, zero)| zero)).all(|&code| code < 16), "assemble_int4: codes");
    let (nibbles, rest) = out.split_at_mut(int4.scales_at(cols));
    let (scales, zeros) = rest.split_at_mut(2 * groups.len());
    for (g, &(scale, zero)) in groups.iter().enumerate() {
        scales[2 * g..2 * g + 2].copy_from_slice(&scale.to_le_bytes());
        if int4.zero_points {
            zeros[g] = zero;
        }
    }
    for (b, block) in nibbles.chunks_exact_mut(BLOCK / 2).enumerate() {
        let zero = if int4.zero_points { zeros[b * BLOCK / int4.group] } else { MIDDLE };
        let mut filled = [zero; BLOCK];
        let from = codes.get(b * BLOCK..).unwrap_or_default();
        filled.iter_mut().zip(from).for_each(|(to, &code)| *to = code);
        pack_block(&filled, block);
    }
}

/// Scale and zero point that cover the values and 0 with 16 steps; NaN if one is NaN or infinite.
fn span(values: &[f32]) -> (f32, u8) {
    let (low, high) = values.iter().fold((0.0f32, 0.0f32), |(low, high), &v| (low.min(v), high.max(v)));
    if values.iter().any(|v| !v.is_finite()) {
        return (f32::NAN, 0);
    }
    let scale = f16::from_f32((high - low) / 15.0).to_f32();
    let zero = if scale == 0.0 { MIDDLE } else { (-low / scale).round_ties_even().clamp(0.0, 15.0) as u8 };
    (scale, zero)
}

/// The scale that puts the value of largest magnitude at -8: its sign decides the scale's. NaN if one is NaN or
/// infinite.
fn symmetric_scale(values: &[f32]) -> f32 {
    if values.iter().any(|v| !v.is_finite()) {
        return f32::NAN;
    }
    values.iter().copied().fold(0.0f32, |a, v| if v.abs() > a.abs() { v } else { a }) / -8.0
}

/// Quantises one row to int8: its largest magnitude becomes 127. A row with NaN or infinity gets the scale NaN.
pub(crate) fn encode_int8(values: &[f32], out: &mut [u8]) {
    let (codes, scale) = out.split_at_mut(int8_scale_at(values.len()));
    let s = quantize_int8(values, codes);
    scale.copy_from_slice(&s.to_le_bytes());
}

/// codesᵢ ← round(valueᵢ / s) to even, s = max |value| / 127; zeros beyond the values. Returns s.
///
/// Codes are `i8` as bytes. With NaN or infinity among the values s is NaN and the codes are 0; values so small that
/// 127 ÷ max overflows count as 0.
#[inline(always)]
pub(crate) fn quantize_int8(values: &[f32], codes: &mut [u8]) -> f32 {
    const LANES: usize = 32;
    let mut largest = [0.0f32; LANES];
    let mut finite = [true; LANES];
    let (chunks, rest) = values.as_chunks::<LANES>();
    for chunk in chunks {
        for lane in 0..LANES {
            let size = chunk[lane].abs();
            finite[lane] &= size < f32::INFINITY;
            largest[lane] = if size > largest[lane] { size } else { largest[lane] };
        }
    }
    let max = rest.iter().map(|v| v.abs()).chain(largest).fold(0.0, |a, b| if b > a { b } else { a });
    let inverse = 127.0 / max;
    let finite = !finite.contains(&false) && rest.iter().all(|v| v.is_finite());
    if !finite || !inverse.is_finite() {
        codes.fill(0);
        return if finite { 0.0 } else { f32::NAN };
    }
    // Adding 1.5 · 2²³ rounds to even and leaves the integer in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let code = |v: f32| ((v * inverse + ROUND).to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32);
    let (filled, padding) = codes.split_at_mut(values.len());
    padding.fill(0);
    for (to, &v) in filled.iter_mut().zip(values) {
        *to = code(v) as u8;
    }
    max / 127.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::{DType, decode, encode};

    fn round_trip(dtype: DType, values: &[f32]) -> Vec<f32> {
        let mut bytes = vec![0xaa; dtype.row_bytes(values.len())];
        encode(dtype, values, &mut bytes);
        let mut back = vec![0.0; values.len()];
        decode(dtype, &bytes, &mut back);
        back
    }

    #[test]
    fn values_on_the_grid_survive() {
        for n in [1, 3, 31, 32, 33, 128, 200] {
            let int8: Vec<f32> = (0..n).map(|i| [127.0, -3.0, 0.0, 64.0, -127.0][i % 5] * 0.25).collect();
            assert_eq!(round_trip(DType::I8, &int8), int8);
            // Each group holds -8, so the scale is exact.
            let int4: Vec<f32> = (0..n).map(|i| [-8.0, 7.0, 0.0, -1.0, 3.0][i % 5] * 0.5).collect();
            assert_eq!(round_trip(DType::I4G32, &int4), int4);
            assert_eq!(round_trip(DType::I4G128, &int4), int4);
        }
    }

    #[test]
    fn rows_put_together_are_their_parts() {
        for n in [1usize, 31, 32, 33, 128, 200] {
            let codes: Vec<i8> = (0..n).map(|i| (i * 37 % 256) as u8 as i8).collect();
            let mut bytes = vec![0xaa; DType::I8.row_bytes(n)];
            assemble_int8(&codes, 0.25, &mut bytes);
            let mut values = vec![0.0; n];
            decode(DType::I8, &bytes, &mut values);
            assert!(values.iter().zip(&codes).all(|(&v, &q)| v == f32::from(q) * 0.25));

            let codes: Vec<u8> = (0..n).map(|i| (i * 7 % 16) as u8).collect();
            for dtype in [DType::I4G32, DType::I4G32Z, DType::I4G128, DType::I4G128Z] {
                let int4 = Int4::of(dtype as u8);
                let part =
                    |g: usize| (f16::from_f32(0.5 + g as f32), if int4.zero_points { 3 + g as u8 } else { MIDDLE });
                let groups: Vec<_> = (0..int4.groups(n)).map(part).collect();
                let mut bytes = vec![0xaa; dtype.row_bytes(n)];
                assemble_int4(dtype, &codes, &groups, &mut bytes);
                decode(dtype, &bytes, &mut values);
                for (i, &v) in values.iter().enumerate() {
                    let (scale, zero) = groups[i / int4.group];
                    assert_eq!(v, (f32::from(codes[i]) - f32::from(zero)) * scale.to_f32(), "{dtype} {i}");
                }
            }
        }
    }

    #[test]
    fn error_is_at_most_half_a_step() {
        let values: Vec<f32> = (0..300).map(|i| ((i * 37 % 101) as f32 - 30.0) * 0.01).collect();
        for (dtype, steps) in [(DType::I8, 127.0), (DType::I4G32, 7.0), (DType::I4G32Z, 7.4), (DType::I4G128Z, 7.4)] {
            let max = values.iter().fold(0.0f32, |a, v| a.max(v.abs()));
            for (a, b) in values.iter().zip(round_trip(dtype, &values)) {
                assert!((a - b).abs() <= 1.02 * max / steps, "{dtype} {a} {b}");
            }
        }
    }

    #[test]
    fn special_rows() {
        for dtype in DType::ALL.into_iter().filter(|t| t.is_quantized() && t.is_writable()) {
            assert_eq!(round_trip(dtype, &[]), []);
            assert_eq!(round_trip(dtype, &[0.0; 40]), [0.0; 40]);
            assert_eq!(round_trip(dtype, &[1e-44; 3]), [0.0; 3]);
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                assert!(round_trip(dtype, &[1.0, bad])[1].is_nan(), "{dtype} {bad}");
            }
        }
    }

    #[test]
    fn codes_are_padded() {
        let mut codes = [9; 8];
        let scale = quantize_int8(&[1.0, -0.5, 0.25], &mut codes);
        assert_eq!(codes.map(|c| c as i8), [127, -64, 32, 0, 0, 0, 0, 0]);
        assert_eq!(scale, 1.0 / 127.0);
    }
}
