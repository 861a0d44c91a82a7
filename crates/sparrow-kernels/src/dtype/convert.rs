//! Conversion between stored elements and `f32`, one element at a time.

use super::{BF16, DType, F16};
use half::{bf16, f16};

/// The element at `index` of `bytes`, of the type whose discriminant is `D`.
#[inline(always)]
pub(crate) fn element<const D: u8>(bytes: &[u8], index: usize) -> f32 {
    if D == BF16 {
        bf16::from_le_bytes([bytes[2 * index], bytes[2 * index + 1]]).to_f32()
    } else if D == F16 {
        f16_to_f32(u16::from_le_bytes([bytes[2 * index], bytes[2 * index + 1]]))
    } else {
        let at = 4 * index;
        f32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
    }
}

#[inline(always)]
fn f16_to_f32(bits: u16) -> f32 {
    f16::from_bits(bits).to_f32_const()
}

/// Widens stored elements to `f32`; exact.
///
/// # Panics
/// If `bytes.len()` is not `out.len() * dtype.size_of()`.
pub fn decode(dtype: DType, bytes: &[u8], out: &mut [f32]) {
    assert_eq!(
        bytes.len(),
        out.len() * dtype.size_of(),
        "decode: bytes.len() does not match out.len() elements of {dtype}"
    );
    match dtype {
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
                *value = bf16::from_le_bytes(*b).to_f32();
            }
        }
    }
}

/// Narrows `f32` values to stored elements, rounding to nearest, ties to even. NaN stays NaN, overflow becomes infinity.
///
/// # Panics
/// If `out.len()` is not `values.len() * dtype.size_of()`.
pub fn encode(dtype: DType, values: &[f32], out: &mut [u8]) {
    assert_eq!(
        out.len(),
        values.len() * dtype.size_of(),
        "encode: out.len() does not match values.len() elements of {dtype}"
    );
    match dtype {
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
