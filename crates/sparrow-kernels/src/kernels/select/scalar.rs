//! Bitmaps and sums in portable Rust.

use std::mem::MaybeUninit;

/// Sets `mask` from a predicate, 64 values per word.
pub(super) fn mask_by(values: &[f32], mask: &mut [u64], active: impl Fn(f32) -> bool) {
    for (word, chunk) in mask.iter_mut().zip(values.chunks(64)) {
        *word = chunk.iter().enumerate().fold(0, |bits, (i, &v)| bits | u64::from(active(v)) << i);
    }
}

/// # Safety
/// None: unsafe only to fit the table.
pub(crate) unsafe fn mask_above_f32_scalar(scores: &[f32], threshold: f32, magnitude: bool, mask: &mut [u64]) {
    if magnitude {
        mask_by(scores, mask, |v| v.abs() > threshold);
    } else {
        mask_by(scores, mask, |v| v > threshold);
    }
}

/// Σ x and Σ x².
///
/// # Safety
/// None: unsafe only to fit the table.
pub(crate) unsafe fn sums_f32_scalar(x: &[f32]) -> (f64, f64) {
    sums(x)
}

/// Σ x and Σ x² in eight interleaved partial sums each.
#[inline(always)]
pub(super) fn sums(x: &[f32]) -> (f64, f64) {
    const LANES: usize = 8;
    let (mut sum, mut squares) = ([0.0f64; LANES], [0.0f64; LANES]);
    let (chunks, rest) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for lane in 0..LANES {
            let v = f64::from(chunk[lane]);
            sum[lane] += v;
            squares[lane] += v * v;
        }
    }
    for (lane, &v) in rest.iter().enumerate() {
        let v = f64::from(v);
        sum[lane] += v;
        squares[lane] += v * v;
    }
    (sum.iter().sum(), squares.iter().sum())
}

/// Writes the numbers of the set bits, ascending, to the front of `ids`, which has room for all bits, and returns how
/// many.
///
/// # Safety
/// None: unsafe only to fit the table.
pub(crate) unsafe fn mask_to_ids_scalar(mask: &[u64], ids: &mut [MaybeUninit<u32>]) -> usize {
    let mut count = 0;
    for (i, &word) in mask.iter().enumerate() {
        let mut left = word;
        while left != 0 {
            ids[count].write(i as u32 * 64 + left.trailing_zeros());
            count += 1;
            left &= left - 1;
        }
    }
    count
}

/// Zeroes the values whose bit is not set, without branches, for the compiler to vectorise.
#[inline(always)]
pub(super) fn zero_unset(values: &mut [f32], mask: &[u64]) {
    const HALF: usize = 32;
    let halves = mask.iter().flat_map(|&word| [word as u32, (word >> HALF) as u32]);
    for (values, bits) in values.chunks_mut(HALF).zip(halves) {
        for (i, value) in values.iter_mut().enumerate() {
            let keep = 0u32.wrapping_sub(bits >> i & 1);
            *value = f32::from_bits(value.to_bits() & keep);
        }
    }
}

/// # Safety
/// None: unsafe only to fit the table.
pub(crate) unsafe fn zero_unset_f32_scalar(values: &mut [f32], mask: &[u64]) {
    zero_unset(values, mask);
}
