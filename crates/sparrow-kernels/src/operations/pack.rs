//! Dense weights to bitmaps, in two passes: count, to know the sizes, then fill memory of the caller.

use crate::compute::Compute;
use crate::dtype::bitmap::{BitmapParts, mask_row_bytes, scale_row_bytes, unit_bytes, units};
use crate::dtype::layout::{BLOCK, MIDDLE};
use crate::dtype::{Bitmap, DType, Matrix};
use crate::parallel::SharedMut;

/// Multiply-adds that looking at one element is worth.
const COST: usize = 8;

/// The arrays of a bitmap in memory of its own, see [`BitmapParts`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PackedBitmap {
    /// The element type.
    pub dtype: DType,
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub cols: usize,
    /// `[rows, ceil(cols/8)]`.
    pub mask: Vec<u8>,
    /// `[rows + 1]`.
    pub offsets: Vec<u64>,
    /// The stored elements.
    pub values: Vec<u8>,
    /// The scales of quantised types.
    pub scales: Vec<u8>,
}

impl PackedBitmap {
    /// The arrays, borrowed.
    pub fn parts(&self) -> BitmapParts<'_> {
        let Self { dtype, rows, cols, .. } = *self;
        BitmapParts {
            dtype,
            rows,
            cols,
            mask: &self.mask,
            offsets: &self.offsets,
            values: &self.values,
            scales: &self.scales,
        }
    }

    /// The bitmap.
    ///
    /// # Panics
    /// If the arrays were changed so that they no longer fit together.
    pub fn bitmap(&self) -> Bitmap<'_> {
        Bitmap::new(self.parts()).unwrap_or_else(|e| panic!("{e}"))
    }
}

/// Bytes of the arrays of a bitmap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BitmapSizes {
    /// Of the mask.
    pub mask: usize,
    /// Of the stored elements.
    pub values: usize,
    /// Of the scales.
    pub scales: usize,
}

/// The offsets `[rows + 1]` of `m` as a bitmap, and the sizes of its other arrays. Parallel.
///
/// # Panics
/// If the type has no bitmap form, see [`BitmapParts::supports`].
pub fn count_stored(compute: &Compute, m: Matrix) -> (Vec<u64>, BitmapSizes) {
    assert!(BitmapParts::supports(m.dtype()), "count_stored: {} has no bitmap form", m.dtype());
    let mut offsets = vec![0; m.rows() + 1];
    let counts = SharedMut::new(&mut offsets[1..]);
    for_row_ranges(compute, m, &|rows| {
        let mut mask = vec![0; mask_row_bytes(m.cols())];
        for row in rows {
            // SAFETY: every row belongs to one task.
            let count = unsafe { counts.part(row..row + 1) };
            count[0] = row_mask(m, row, &mut mask);
        }
    });
    for i in 1..offsets.len() {
        offsets[i] += offsets[i - 1];
    }
    let sizes = BitmapSizes {
        mask: m.rows() * mask_row_bytes(m.cols()),
        values: offsets[m.rows()] as usize * unit_bytes(m.dtype()),
        scales: m.rows() * scale_row_bytes(m.dtype(), m.cols()),
    };
    (offsets, sizes)
}

/// Fills the arrays of `m` as a bitmap, whose offsets [`count_stored`] gave. Parallel.
///
/// # Panics
/// If an array does not have its size, or the offsets are not those of `m`.
pub fn fill_bitmap(
    compute: &Compute,
    m: Matrix,
    offsets: &[u64],
    mask: &mut [u8],
    values: &mut [u8],
    scales: &mut [u8],
) {
    let (dtype, cols) = (m.dtype(), m.cols());
    let (mask_bytes, scale_bytes, unit) = (mask_row_bytes(cols), scale_row_bytes(dtype, cols), unit_bytes(dtype));
    let length = |name: &str, got: usize, want: usize| {
        assert_eq!(got, want, "fill_bitmap: {name} has {got} bytes, not {want}");
    };
    assert_eq!(offsets.len(), m.rows() + 1, "fill_bitmap: offsets.len() is not rows + 1");
    assert!(offsets.is_sorted(), "fill_bitmap: offsets are not ascending");
    length("mask", mask.len(), m.rows() * mask_bytes);
    length("values", values.len(), offsets[m.rows()] as usize * unit);
    length("scales", scales.len(), m.rows() * scale_bytes);
    let [mask, values, scales] = [mask, values, scales].map(SharedMut::new);
    for_row_ranges(compute, m, &|rows| {
        for row in rows {
            let range = offsets[row] as usize * unit..offsets[row + 1] as usize * unit;
            // SAFETY: every row belongs to one task, and offsets ascend.
            let [mask, values, scales] = unsafe {
                [
                    mask.part(row * mask_bytes..(row + 1) * mask_bytes),
                    values.part(range),
                    scales.part(row * scale_bytes..(row + 1) * scale_bytes),
                ]
            };
            let stored = row_mask(m, row, mask);
            assert_eq!(
                stored,
                offsets[row + 1] - offsets[row],
                "fill_bitmap: the offsets of row {row} are not its own"
            );
            copy_stored(m, row, mask, values);
            scales.copy_from_slice(&m.row(row)[dtype.code_bytes(cols)..]);
        }
    });
}

/// `m` as a bitmap. Parallel.
///
/// # Panics
/// If the type has no bitmap form, see [`BitmapParts::supports`].
pub fn pack(compute: &Compute, m: Matrix) -> PackedBitmap {
    let (offsets, sizes) = count_stored(compute, m);
    let mut packed = PackedBitmap {
        dtype: m.dtype(),
        rows: m.rows(),
        cols: m.cols(),
        mask: vec![0; sizes.mask],
        offsets: Vec::new(),
        values: vec![0; sizes.values],
        scales: vec![0; sizes.scales],
    };
    fill_bitmap(compute, m, &offsets, &mut packed.mask, &mut packed.values, &mut packed.scales);
    packed.offsets = offsets;
    packed
}

/// Calls `f` with ranges that cover the rows, in parallel.
fn for_row_ranges(compute: &Compute, m: Matrix, f: &(dyn Fn(std::ops::Range<usize>) + Sync)) {
    let work = m.rows() * m.cols() * COST;
    let rows = m.rows().div_ceil(compute.workers.tasks(m.rows(), work)).max(1);
    compute.workers.parallel(m.rows().div_ceil(rows), work, &|task| f(task * rows..m.rows().min((task + 1) * rows)));
}

/// mask ← which elements of a row are not zero; returns what they add to the offsets.
fn row_mask(m: Matrix, row: usize, mask: &mut [u8]) -> u64 {
    let (dtype, bytes) = (m.dtype(), m.row(row));
    match dtype {
        DType::F32 => mask_elements(bytes.as_chunks::<4>().0, mask),
        DType::F16 | DType::BF16 => mask_elements(bytes.as_chunks::<2>().0, mask),
        DType::I8 => mask_elements(bytes[..m.cols()].as_chunks::<1>().0, mask),
        _ => {
            mask.fill(0);
            for i in (0..m.cols()).filter(|&i| nibble(bytes, i) != MIDDLE) {
                mask[i / 8] |= 1 << (i % 8);
            }
        }
    }
    units(dtype, mask)
}

fn mask_elements<const SIZE: usize>(row: &[[u8; SIZE]], mask: &mut [u8]) {
    for (elements, byte) in row.chunks(8).zip(mask) {
        *byte = elements.iter().rev().fold(0, |bits, element| bits << 1 | u8::from(*element != [0; SIZE]));
    }
}

/// values ← the elements of a row whose bit is set.
fn copy_stored(m: Matrix, row: usize, mask: &[u8], values: &mut [u8]) {
    let bytes = m.row(row);
    match m.dtype() {
        DType::F32 => copy_elements(bytes.as_chunks::<4>().0, mask, values),
        DType::F16 | DType::BF16 => copy_elements(bytes.as_chunks::<2>().0, mask, values),
        DType::I8 => copy_elements(bytes[..m.cols()].as_chunks::<1>().0, mask, values),
        _ => {
            let mut rest = values;
            for (b, block) in mask.chunks(BLOCK / 8).enumerate() {
                let stored = (0..8 * block.len()).filter(|bit| block[bit / 8] >> (bit % 8) & 1 == 1);
                let count = units(m.dtype(), block) as usize;
                let (here, after) = rest.split_at_mut(count);
                here.fill(0);
                for (j, bit) in stored.enumerate() {
                    here[j / 2] |= nibble(bytes, b * BLOCK + bit) << (j % 2 * 4);
                }
                rest = after;
            }
        }
    }
}

fn copy_elements<const SIZE: usize>(row: &[[u8; SIZE]], mask: &[u8], values: &mut [u8]) {
    let mut values = values.as_chunks_mut::<SIZE>().0.iter_mut();
    for (elements, byte) in row.chunks(8).zip(mask) {
        let mut bits = *byte;
        while bits != 0 {
            if let Some(value) = values.next() {
                *value = elements[bits.trailing_zeros() as usize];
            }
            bits &= bits - 1;
        }
    }
}

/// Element `i` of a row of int4, q + 8.
fn nibble(row: &[u8], i: usize) -> u8 {
    let byte = row[i / BLOCK * (BLOCK / 2) + i % (BLOCK / 2)];
    if i % BLOCK < BLOCK / 2 { byte & 0xf } else { byte >> 4 }
}
