//! Conversion between stored elements and `f32`, one element at a time.

use super::coded::SPAN;
use super::layout::{self, Int4};
use super::quantized;
use super::types::{BF16, DType, F16, F32, I8};
use half::{bf16, f16};

/// Element `index` of a row of `cols` elements, of the type whose discriminant is `D`.
#[inline(always)]
pub(crate) fn element<const D: u8>(row: &[u8], cols: usize, index: usize) -> f32 {
    match D {
        F32 => {
            let at = 4 * index;
            f32::from_le_bytes([row[at], row[at + 1], row[at + 2], row[at + 3]])
        }
        F16 => f16_to_f32(u16::from_le_bytes([row[2 * index], row[2 * index + 1]])),
        BF16 => bf16_to_f32(u16::from_le_bytes([row[2 * index], row[2 * index + 1]])),
        I8 => f32::from(row[index] as i8) * int8_scale(row, cols),
        _ => Int4::of(D).element(row, cols, index),
    }
}

/// Without the branch for NaN of the library, which keeps the compiler from vectorising; NaN stays NaN here too.
#[inline(always)]
fn bf16_to_f32(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

fn int8_scale(row: &[u8], cols: usize) -> f32 {
    let at = layout::int8_scale_at(cols);
    f32::from_le_bytes([row[at], row[at + 1], row[at + 2], row[at + 3]])
}

#[inline(always)]
fn f16_to_f32(bits: u16) -> f32 {
    f16::from_bits(bits).to_f32_const()
}

/// Widens one stored row to `f32`: exact for floats, within 2⁻²⁴ relative for quantised types. Of floats any number of
/// rows will do.
///
/// # Panics
/// If `bytes.len()` is not `dtype.row_bytes(out.len())`.
pub fn decode(dtype: DType, bytes: &[u8], out: &mut [f32]) {
    assert_eq!(
        bytes.len(),
        dtype.row_bytes(out.len()),
        "decode: bytes.len() does not match out.len() elements of {dtype}"
    );
    if let Some(format) = dtype.block() {
        return format.decode(bytes, out);
    }
    match dtype {
        DType::I8 => decode_row::<I8>(bytes, out),
        DType::I4G32 => decode_row::<{ DType::I4G32 as u8 }>(bytes, out),
        DType::I4G32Z => decode_row::<{ DType::I4G32Z as u8 }>(bytes, out),
        DType::I4G128 => decode_row::<{ DType::I4G128 as u8 }>(bytes, out),
        DType::I4G128Z => decode_row::<{ DType::I4G128Z as u8 }>(bytes, out),
        DType::F32 => {
            for (value, b) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
                *value = f32::from_le_bytes(*b);
            }
        }
        DType::F16 => {
            for (value, b) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                *value = f16::from_le_bytes(*b).to_f32();
            }
        }
        DType::BF16 => {
            for (value, b) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
                *value = bf16_to_f32(u16::from_le_bytes(*b));
            }
        }
        _ => unreachable!("blocks are decoded above"),
    }
}

/// The elements of a row of `cols` from `c`, a multiple of [`SPAN`], on, as many as `out` has.
///
/// # Panics
/// If the row does not have them, or `out` is longer than a span.
pub(crate) fn part(dtype: DType, row: &[u8], cols: usize, c: usize, out: &mut [f32]) {
    assert!(out.len() <= SPAN && c + out.len() <= cols, "part: elements of a row");
    match dtype.block() {
        Some(format) => {
            let at = c / format.elements * format.bytes;
            format.decode(&row[at..at + format.row_bytes(out.len())], out);
        }
        None => {
            let int4 = Int4::of(dtype as u8);
            out.iter_mut().enumerate().for_each(|(i, value)| *value = int4.element(row, cols, c + i));
        }
    }
}

/// All elements of a row, one by one.
#[inline(always)]
pub(crate) fn decode_row<const D: u8>(row: &[u8], out: &mut [f32]) {
    let cols = out.len();
    for (i, value) in out.iter_mut().enumerate() {
        *value = element::<D>(row, cols, i);
    }
}

/// Narrows `f32` values to one stored row, rounding to nearest, ties to even. Of floats any number of rows will do: NaN
/// stays NaN, overflow becomes infinity. Of quantised types the scale is that of the largest magnitude of the row or
/// group; where that is NaN or infinite, all of it becomes NaN.
///
/// # Panics
/// If `out.len()` is not `dtype.row_bytes(values.len())`, or the type is not [written](DType::is_writable).
pub fn encode(dtype: DType, values: &[f32], out: &mut [u8]) {
    assert_eq!(
        out.len(),
        dtype.row_bytes(values.len()),
        "encode: out.len() does not match values.len() elements of {dtype}"
    );
    match dtype {
        DType::I8 => quantized::encode_int8(values, out),
        DType::I4G32 | DType::I4G32Z | DType::I4G128 | DType::I4G128Z => Int4::of(dtype as u8).encode(values, out),
        DType::F32 => {
            for (value, b) in values.iter().zip(out.as_chunks_mut::<4>().0) {
                *b = value.to_le_bytes();
            }
        }
        DType::F16 => {
            for (value, b) in values.iter().zip(out.as_chunks_mut::<2>().0) {
                *b = f16::from_f32(*value).to_le_bytes();
            }
        }
        DType::BF16 => {
            for (value, b) in values.iter().zip(out.as_chunks_mut::<2>().0) {
                *b = bf16::from_f32(*value).to_le_bytes();
            }
        }
        blocks => encode_blocks(blocks, values, out),
    }
}

fn encode_blocks(dtype: DType, values: &[f32], out: &mut [u8]) {
    let format = dtype.block().expect("floats and int4 are written above");
    let encode = format.encode.unwrap_or_else(|| panic!("encode: {dtype} is only read"));
    let (whole, rest) = values.split_at(values.len() / format.elements * format.elements);
    let mut blocks = out.chunks_exact_mut(format.bytes);
    for (values, block) in whole.chunks_exact(format.elements).zip(&mut blocks) {
        encode(values, block);
    }
    if let Some(block) = blocks.next() {
        let mut padded = [0.0; SPAN];
        padded[..rest.len()].copy_from_slice(rest);
        encode(&padded[..format.elements], block);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_16_bit_pattern_survives_a_round_trip() {
        for dtype in [DType::F16, DType::BF16] {
            for bits in 0..=u16::MAX {
                let bytes = bits.to_le_bytes();
                let mut value = [0.0];
                decode(dtype, &bytes, &mut value);
                let mut back = [0; 2];
                encode(dtype, &value, &mut back);
                if value[0].is_nan() {
                    let mut again = [0.0];
                    decode(dtype, &back, &mut again);
                    assert!(again[0].is_nan());
                } else {
                    assert_eq!(bytes, back, "{dtype} {bits:#06x}");
                }
            }
        }
    }

    #[test]
    fn rounds_ties_to_even() {
        let mut out = [0; 4];
        // 1 + 2^-8 lies half way between two bf16 values; so does 1 + 3 * 2^-8.
        encode(DType::BF16, &[1.003_906_3, 1.011_718_8], &mut out);
        assert_eq!(u16::from_le_bytes([out[0], out[1]]), 0x3f80);
        assert_eq!(u16::from_le_bytes([out[2], out[3]]), 0x3f82);
        encode(DType::F16, &[65504.0, 65520.0], &mut out);
        assert_eq!(u16::from_le_bytes([out[0], out[1]]), 0x7bff);
        assert_eq!(u16::from_le_bytes([out[2], out[3]]), 0x7c00);
    }

    #[test]
    fn names_round_trip() {
        for dtype in DType::ALL {
            assert_eq!(dtype.to_string().parse(), Ok(dtype));
        }
        assert!("f8".parse::<DType>().is_err());
    }
}
