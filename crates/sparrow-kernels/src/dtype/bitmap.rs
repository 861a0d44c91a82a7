//! Weights with many zeros: a bitmap says which elements are stored.
//!
//! A matrix `[rows, cols]` is four arrays:
//!
//! | array | content |
//! |---|---|
//! | mask | `[rows, ⌈cols/8⌉]` bytes; bit i mod 8 of byte i/8 of a row: element i is stored; bits past cols are 0 |
//! | values | the stored elements, row after row, by column |
//! | offsets | `[rows + 1]`: where the values of each row begin, and where the last ones end; in elements, of int4 in bytes |
//! | scales | int8: `[rows]` f32; int4: `[rows, ⌈cols/group⌉]` f16; floats: none |
//!
//! Int4 elements are q + 8, two to a byte, the first in the low half; those of every 32 columns begin a new byte.
//! Elements whose bits are all 0 (+0.0; q = 0 of quantised types) need not be stored; -0.0 is stored. Mask, values and
//! offsets of floats are those of the `sparse-bitmask` format of compressed-tensors, which has no last offset.

use super::convert::decode;
use super::layout::{BLOCK, Int4, MAX_INT8_COLS, MIDDLE};
use super::types::DType;
use half::f16;
use std::fmt;
use std::ops::Range;

/// The arrays of weights `[rows, cols]` as a bitmap, which may start at any address, not yet known to fit together.
#[derive(Clone, Copy)]
pub struct BitmapParts<'a> {
    /// A float type, int8, or int4 without zero points.
    pub dtype: DType,
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub cols: usize,
    /// `[rows, ceil(cols/8)]`, the lowest bit first.
    pub mask: &'a [u8],
    /// `[rows + 1]`, in elements, of int4 in bytes.
    pub offsets: &'a [u64],
    /// The stored elements, little-endian.
    pub values: &'a [u8],
    /// Int8: an `f32` for each row; int4: an `f16` for each group of each row; floats: empty.
    pub scales: &'a [u8],
}

/// Why [`BitmapParts`] are no bitmap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BitmapError {
    /// The type has no bitmap form.
    Type(DType),
    /// An int8 row is longer than its sums allow, or a length overflows.
    TooLarge {
        /// Rows.
        rows: usize,
        /// Columns.
        cols: usize,
    },
    /// An array does not have the length that the shape or the last offset demands.
    Length {
        /// `mask`, `offsets`, `values` or `scales`.
        array: &'static str,
        /// What it must have, in bytes, of offsets in numbers.
        expected: usize,
        /// What it has.
        found: usize,
    },
    /// An offset is not the number of elements stored before it.
    Offset {
        /// Its place in `offsets`.
        row: usize,
        /// What the mask says.
        expected: u64,
        /// What is there.
        found: u64,
    },
    /// A row's mask has bits past the last column.
    Padding {
        /// The row.
        row: usize,
    },
}

impl fmt::Display for BitmapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BitmapError::Type(dtype) => write!(f, "{dtype} has no bitmap form"),
            BitmapError::TooLarge { rows, cols } => write!(f, "a bitmap of [{rows}, {cols}] is too large"),
            BitmapError::Length { array, expected, found } => {
                write!(f, "the bitmap's {array} has length {found}, expected {expected}")
            }
            BitmapError::Offset { row, expected, found } => {
                write!(f, "offset {row} of the bitmap is {found}, but its mask says {expected}")
            }
            BitmapError::Padding { row } => write!(f, "row {row} of the bitmap's mask has bits past the last column"),
        }
    }
}

impl std::error::Error for BitmapError {}

/// Bytes of a row of the mask.
pub(crate) const fn mask_row_bytes(cols: usize) -> usize {
    cols.div_ceil(8)
}

/// `8 * N` bits of a row's mask from element `i`, a multiple of 8, on; zeros from element `len` on. N is 1, 2, 4 or 8.
///
/// # Safety
/// `i < len`, and the mask must be readable up to element `len`.
#[inline(always)]
pub(crate) unsafe fn mask_bits<const N: usize>(mask: *const u8, i: usize, len: usize) -> u64 {
    // SAFETY: the caller guarantees the bytes that hold bits below len.
    unsafe {
        let from = mask.add(i / 8);
        match N {
            _ if len - i < 8 * N => last_mask_bits(from, len - i),
            1 => u64::from(*from),
            2 => u64::from(u16::from_le(from.cast::<u16>().read_unaligned())),
            4 => u64::from(u32::from_le(from.cast::<u32>().read_unaligned())),
            _ => u64::from_le(from.cast::<u64>().read_unaligned()),
        }
    }
}

/// The first `n < 64` bits of `mask`.
///
/// # Safety
/// They must be readable.
#[cold]
unsafe fn last_mask_bits(mask: *const u8, n: usize) -> u64 {
    let mut bytes = [0; 8];
    // SAFETY: the contract is the caller's.
    unsafe { mask.copy_to_nonoverlapping(bytes.as_mut_ptr(), n.div_ceil(8)) };
    u64::from_le_bytes(bytes) & ((1 << n) - 1)
}

/// The int4 type, if it is one.
const fn int4(dtype: DType) -> Option<Int4> {
    match dtype {
        DType::I4G32 | DType::I4G32Z | DType::I4G128 | DType::I4G128Z => Some(Int4::of(dtype as u8)),
        _ => None,
    }
}

/// Bytes of the scales of a row of a bitmap.
pub(crate) const fn scale_row_bytes(dtype: DType, cols: usize) -> usize {
    match (int4(dtype), dtype) {
        (Some(int4), _) => int4.groups(cols) * size_of::<f16>(),
        (None, DType::I8) => size_of::<f32>(),
        _ => 0,
    }
}

/// Bytes of what offsets count: elements, or bytes of int4.
pub(crate) const fn unit_bytes(dtype: DType) -> usize {
    match dtype {
        DType::F32 => 4,
        DType::F16 | DType::BF16 => 2,
        _ => 1,
    }
}

/// What a row with this mask adds to the offsets.
pub(crate) fn units(dtype: DType, mask: &[u8]) -> u64 {
    if int4(dtype).is_some() {
        return mask.chunks(BLOCK / 8).map(|block| count_ones(block).div_ceil(2)).sum();
    }
    count_ones(mask)
}

fn count_ones(mask: &[u8]) -> u64 {
    let (words, rest) = mask.as_chunks::<8>();
    let words: u64 = words.iter().map(|word| u64::from(u64::from_le_bytes(*word).count_ones())).sum();
    words + rest.iter().map(|byte| u64::from(byte.count_ones())).sum::<u64>()
}

impl<'a> BitmapParts<'a> {
    /// Whether the type has a bitmap form: floats, int8, and int4 without zero points.
    pub const fn supports(dtype: DType) -> bool {
        match int4(dtype) {
            Some(int4) => !int4.zero_points,
            None => dtype.block().is_none(),
        }
    }

    /// The density below which multiplying a few activations by a bitmap takes less time than by dense weights.
    /// Measured by `examples/bitmap.rs` on a Xeon with AMX, weights from memory, as parts of the time of dense weights,
    /// for one activation:
    ///
    /// | density | bf16 | f16 | f32 | int8 |
    /// |---|---|---|---|---|
    /// | 0.5 | 0.58 | 0.72 | 0.59 | 0.56 |
    /// | 0.8 | 0.83 | 0.88 | 0.89 | 0.81 |
    /// | 1 | 1.10 | 1.10 | 1.12 | 0.97 |
    ///
    /// Of int8 less memory than dense weights decides. Int4 is slower at every density: putting nibbles in their places
    /// takes more shuffles than all of a dense product, and saves a quarter of the bytes.
    pub const fn pays_below(dtype: DType) -> f64 {
        match dtype {
            DType::BF16 => 0.9,
            DType::F32 | DType::F16 | DType::I8 => 0.85,
            _ => 0.0,
        }
    }

    /// Whether the arrays fit together, so that every stored element can be found. Reads each byte of the mask once.
    ///
    /// # Errors
    /// The first thing that does not fit.
    pub fn check(&self) -> Result<(), BitmapError> {
        self.check_lengths()?;
        (0..self.rows).try_for_each(|row| self.check_row(row))
    }

    fn check_lengths(&self) -> Result<(), BitmapError> {
        let Self { dtype, rows, cols, .. } = *self;
        if !Self::supports(dtype) {
            return Err(BitmapError::Type(dtype));
        }
        let too_large = BitmapError::TooLarge { rows, cols };
        // Of a dense matrix of this shape every length fits a usize, so all that is computed from them does.
        let fits = cols < usize::MAX / 8 && rows < usize::MAX && rows.checked_mul(dtype.row_bytes(cols) + 1).is_some();
        if !fits || dtype == DType::I8 && cols > MAX_INT8_COLS {
            return Err(too_large);
        }
        let length = |array, found, expected| {
            if found == expected { Ok(()) } else { Err(BitmapError::Length { array, expected, found }) }
        };
        length("mask", self.mask.len(), rows * mask_row_bytes(cols))?;
        length("scales", self.scales.len(), rows * scale_row_bytes(dtype, cols))?;
        length("offsets", self.offsets.len(), rows + 1)?;
        if self.offsets[0] != 0 {
            return Err(BitmapError::Offset { row: 0, expected: 0, found: self.offsets[0] });
        }
        let values = usize::try_from(self.offsets[rows]).ok().and_then(|n| n.checked_mul(unit_bytes(dtype)));
        length("values", self.values.len(), values.ok_or(too_large)?)
    }

    fn check_row(&self, row: usize) -> Result<(), BitmapError> {
        let mask = self.mask_row(row);
        let past = self.cols % 8;
        if past > 0 && mask.last().is_some_and(|last| last >> past != 0) {
            return Err(BitmapError::Padding { row });
        }
        let (expected, found) = (self.offsets[row].saturating_add(units(self.dtype, mask)), self.offsets[row + 1]);
        if expected == found { Ok(()) } else { Err(BitmapError::Offset { row: row + 1, expected, found }) }
    }

    fn mask_row(&self, row: usize) -> &'a [u8] {
        let bytes = mask_row_bytes(self.cols);
        &self.mask[row * bytes..][..bytes]
    }
}

/// Borrowed weights `[rows, cols]` as a bitmap whose arrays fit together, see [`BitmapParts`].
#[derive(Clone, Copy)]
pub struct Bitmap<'a> {
    parts: BitmapParts<'a>,
}

impl<'a> Bitmap<'a> {
    /// A view of checked arrays.
    ///
    /// # Errors
    /// See [`BitmapParts::check`].
    pub fn new(parts: BitmapParts<'a>) -> Result<Self, BitmapError> {
        parts.check()?;
        Ok(Self { parts })
    }

    /// A view of arrays that were checked before.
    ///
    /// # Safety
    /// [`BitmapParts::check`] must succeed for these bytes.
    pub unsafe fn new_unchecked(parts: BitmapParts<'a>) -> Self {
        Self { parts }
    }

    /// Rows.
    pub fn rows(&self) -> usize {
        self.parts.rows
    }

    /// Columns.
    pub fn cols(&self) -> usize {
        self.parts.cols
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.parts.dtype
    }

    /// The arrays. Those of a [`row_range`](Self::row_range) keep the values and offsets of the whole.
    pub(crate) fn parts(&self) -> &BitmapParts<'a> {
        &self.parts
    }

    /// Bytes of mask, offsets, values and scales of these rows.
    pub fn bytes(&self) -> usize {
        let offsets = self.parts.offsets;
        let units = (offsets[self.rows()] - offsets[0]) as usize;
        self.parts.mask.len() + size_of_val(offsets) + units * unit_bytes(self.dtype()) + self.parts.scales.len()
    }

    /// The stored fraction of all elements, 0 of none. Reads the mask.
    pub fn density(&self) -> f64 {
        let elements = self.rows() as f64 * self.cols() as f64;
        if elements == 0.0 { 0.0 } else { count_ones(self.parts.mask) as f64 / elements }
    }

    /// Rows `range` as a bitmap.
    ///
    /// # Panics
    /// If the range is reversed or ends past the last row.
    pub fn row_range(&self, range: Range<usize>) -> Bitmap<'a> {
        let parts = &self.parts;
        assert!(
            range.start <= range.end && range.end <= parts.rows,
            "Bitmap::row_range: {range:?} of {} rows",
            parts.rows
        );
        let of_rows = |bytes: usize| range.start * bytes..range.end * bytes;
        let parts = BitmapParts {
            rows: range.len(),
            mask: &parts.mask[of_rows(mask_row_bytes(parts.cols))],
            offsets: &parts.offsets[range.start..=range.end],
            scales: &parts.scales[of_rows(scale_row_bytes(parts.dtype, parts.cols))],
            ..*parts
        };
        Bitmap { parts }
    }

    /// One row as `f32`, zeros where nothing is stored.
    ///
    /// # Panics
    /// If `row` is not below [`rows`](Self::rows), or `out` does not have its length.
    pub fn decode_row(&self, row: usize, out: &mut [f32]) {
        assert!(row < self.rows() && out.len() == self.cols(), "Bitmap::decode_row: row {row} of {self:?}");
        let (dtype, mask, scales) = (self.dtype(), self.mask_row(row), self.scale_row(row));
        let mut values = &self.parts.values[self.parts.offsets[row] as usize * unit_bytes(dtype)..];
        out.fill(0.0);
        if let Some(int4) = int4(dtype) {
            for (b, block) in mask.chunks(BLOCK / 8).enumerate() {
                let scale = b * BLOCK / int4.group * size_of::<f16>();
                let scale = f16::from_le_bytes([scales[scale], scales[scale + 1]]).to_f32();
                let stored = (0..8 * block.len()).filter(|bit| block[bit / 8] >> (bit % 8) & 1 == 1);
                for (j, bit) in stored.enumerate() {
                    let nibble = values[j / 2] >> (j % 2 * 4) & 0xf;
                    out[b * BLOCK + bit] = (f32::from(nibble) - f32::from(MIDDLE)) * scale;
                }
                values = &values[units(dtype, block) as usize..];
            }
            return;
        }
        let scale = self.int8_scale(row);
        for i in (0..self.cols()).filter(|i| mask[i / 8] >> (i % 8) & 1 == 1) {
            let (value, rest) = values.split_at(unit_bytes(dtype));
            out[i] = match dtype {
                DType::I8 => f32::from(value[0] as i8) * scale,
                float => {
                    let mut decoded = [0.0];
                    decode(float, value, &mut decoded);
                    decoded[0]
                }
            };
            values = rest;
        }
    }

    /// The mask of one row.
    ///
    /// # Panics
    /// As [`decode_row`](Self::decode_row).
    pub(crate) fn mask_row(&self, row: usize) -> &'a [u8] {
        self.parts.mask_row(row)
    }

    /// The scales of one row, none for floats.
    ///
    /// # Panics
    /// As [`decode_row`](Self::decode_row).
    pub(crate) fn scale_row(&self, row: usize) -> &'a [u8] {
        let bytes = scale_row_bytes(self.dtype(), self.cols());
        &self.parts.scales[row * bytes..][..bytes]
    }

    /// The scale of a row of int8, 1 of other types.
    ///
    /// # Panics
    /// As [`decode_row`](Self::decode_row).
    pub(crate) fn int8_scale(&self, row: usize) -> f32 {
        match (self.dtype(), self.scale_row(row)) {
            (DType::I8, &[a, b, c, d]) => f32::from_le_bytes([a, b, c, d]),
            _ => 1.0,
        }
    }
}

impl fmt::Debug for Bitmap<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Bitmap([{}, {}] {})", self.rows(), self.cols(), self.dtype())
    }
}
