//! How rows lie in memory, those of quantised types above all.
//!
//! | type | bytes of a row of n elements | element i |
//! |---|---|---|
//! | int8 | n × i8, zeros up to a multiple of 4; scale s: f32 | qᵢ · s |
//! | int4, groups of G = 32 or 128 | ⌈n/G⌉ · G/2 bytes of nibbles; ⌈n/G⌉ scales: f16; with zero points ⌈n/G⌉ × u8 | (qᵢ − z) · s of its group; z = 8 without zero points |
//!
//! Nibbles come in blocks of 32 elements, 16 bytes: byte j holds element j in its low and element j + 16 in its high
//! half, so that each half of a block is 16 neighbours. Elements beyond n are stored as zeros (q = z).
//!
//! The other types are rows of GGML's blocks, see [`block`](super::block).
//!
//! Symmetric int8 with one scale per output is the `int-quantized` scheme of compressed-tensors, groups with and
//! without zero points its `pack-quantized` one; the block order of nibbles is that of GGML's Q4_0.

use super::types::{DType, I4G32, I4G32Z, I4G128, I4G128Z};

/// The most elements of an int8 row: 128 · 127 times as many still fit an `i32`.
pub(crate) const MAX_INT8_COLS: usize = 1 << 17;
/// Elements of a block of nibbles.
pub(crate) const BLOCK: usize = 32;
/// What is subtracted where a type has no zero points.
pub(crate) const MIDDLE: u8 = 8;

/// Where the scale of an int8 row starts.
pub(crate) const fn int8_scale_at(cols: usize) -> usize {
    cols.next_multiple_of(4)
}

pub(crate) const fn int8_row_bytes(cols: usize) -> usize {
    int8_scale_at(cols) + size_of::<f32>()
}

/// The scale of an int8 row of `cols` elements.
///
/// # Safety
/// The row must be readable.
#[inline(always)]
pub(crate) unsafe fn int8_scale(row: *const u8, cols: usize) -> f32 {
    // SAFETY: the caller guarantees the row, whose last four bytes these are.
    unsafe { row.add(int8_scale_at(cols)).cast::<f32>().read_unaligned() }
}

/// One of the int4 types.
#[derive(Clone, Copy)]
pub(crate) struct Int4 {
    /// Elements that share a scale.
    pub group: usize,
    /// Whether each group has a zero point.
    pub zero_points: bool,
}

impl Int4 {
    /// The type whose discriminant is `code`.
    pub(crate) const fn of(code: u8) -> Int4 {
        match code {
            I4G32 => Int4 { group: 32, zero_points: false },
            I4G32Z => Int4 { group: 32, zero_points: true },
            I4G128 => Int4 { group: 128, zero_points: false },
            I4G128Z => Int4 { group: 128, zero_points: true },
            _ => panic!("not an int4 type"),
        }
    }

    pub(crate) const fn groups(self, cols: usize) -> usize {
        cols.div_ceil(self.group)
    }

    /// Where the scales of a row start: after its nibbles.
    pub(crate) const fn scales_at(self, cols: usize) -> usize {
        self.groups(cols) * self.group / 2
    }

    /// Where the zero points of a row start: after its scales.
    pub(crate) const fn zeros_at(self, cols: usize) -> usize {
        self.scales_at(cols) + 2 * self.groups(cols)
    }

    pub(crate) const fn row_bytes(self, cols: usize) -> usize {
        self.zeros_at(cols) + if self.zero_points { self.groups(cols) } else { 0 }
    }
}

impl DType {
    /// Bytes of a row of `cols` elements.
    pub const fn row_bytes(self, cols: usize) -> usize {
        match self {
            DType::F32 => 4 * cols,
            DType::F16 | DType::BF16 => 2 * cols,
            DType::I8 => int8_row_bytes(cols),
            DType::I4G32 => Int4::of(I4G32).row_bytes(cols),
            DType::I4G32Z => Int4::of(I4G32Z).row_bytes(cols),
            DType::I4G128 => Int4::of(I4G128).row_bytes(cols),
            DType::I4G128Z => Int4::of(I4G128Z).row_bytes(cols),
            blocks => match blocks.block() {
                Some(format) => format.row_bytes(cols),
                None => unreachable!(),
            },
        }
    }

    /// Bytes of the elements of a row of `cols`, with their padding: what comes before the scales, of types that have a
    /// bitmap form.
    pub(crate) const fn code_bytes(self, cols: usize) -> usize {
        match self {
            DType::F32 | DType::F16 | DType::BF16 => self.row_bytes(cols),
            DType::I8 => int8_scale_at(cols),
            _ => Int4::of(self as u8).scales_at(cols),
        }
    }
}
