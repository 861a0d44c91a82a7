//! Which neurons are active: thresholds, bitmaps and lists of indices.
//!
//! A bitmap of n bits is ⌈n/64⌉ words; bit i is bit i % 64 of word i / 64, and bits from n on are zero.

use crate::compute::Compute;
use crate::kernels::select::kth::kth_largest;

/// Words of a bitmap of `n` bits.
pub const fn mask_words(n: usize) -> usize {
    n.div_ceil(64)
}

impl Compute {
    /// Bit i ← scoreᵢ > threshold, or |scoreᵢ| > threshold if `magnitude`. NaN is not active.
    ///
    /// `scores` is `[n]`, `mask` `[ceil(n/64)]`.
    ///
    /// # Panics
    /// If `mask` has another length.
    pub fn mask_above(&self, scores: &[f32], threshold: f32, magnitude: bool, mask: &mut [u64]) {
        check_mask("mask_above", scores, mask);
        // SAFETY: the table holds only kernels that this CPU can run.
        unsafe { (self.kernels.mask_above)(scores, threshold, magnitude, mask) }
    }

    /// valueᵢ ← 0 where bit i of the row's mask is not set, whatever it was. Parallel.
    ///
    /// `values` is `[m, n]`, `masks` `[m, ceil(n/64)]`.
    ///
    /// # Panics
    /// If `values.len()` is no multiple of `n`, or `masks` has another length.
    pub fn zero_unset(&self, values: &mut [f32], n: usize, masks: &[u64]) {
        let words = mask_words(n);
        assert!(n > 0 && values.len().is_multiple_of(n), "zero_unset: values.len() is no multiple of n = {n}");
        assert_eq!(masks.len(), values.len() / n * words, "zero_unset: masks.len() is not m * ceil({n} / 64)");
        self.workers.split_rows(values, n, n, &|row, values| {
            // SAFETY: the table holds only kernels that this CPU can run.
            unsafe { (self.kernels.zero_unset)(values, &masks[row * words..(row + 1) * words]) }
        });
    }

    /// valueᵢ ← otherᵢ where bit i of the row's mask is not set. Parallel.
    ///
    /// `values` is `[m, n]`, `masks` `[m, ceil(n/64)]`, `others` `[n]`.
    ///
    /// # Panics
    /// If `values.len()` is no multiple of the length of `others`, or `masks` has another length.
    pub fn replace_unset(&self, values: &mut [f32], others: &[f32], masks: &[u64]) {
        let (n, words) = (others.len(), mask_words(others.len()));
        assert!(n > 0 && values.len().is_multiple_of(n), "replace_unset: values.len() is no multiple of n = {n}");
        assert_eq!(masks.len(), values.len() / n * words, "replace_unset: masks.len() is not m * ceil({n} / 64)");
        self.workers.split_rows(values, n, n, &|row, values| {
            let mask = &masks[row * words..(row + 1) * words];
            for (i, (value, &other)) in values.iter_mut().zip(others).enumerate() {
                if mask[i / 64] >> (i % 64) & 1 == 0 {
                    *value = other;
                }
            }
        });
    }

    /// The mean and the population standard deviation, in one pass with `f64` sums; (0, 0) for none.
    ///
    /// Exact to 2⁻²³ relative unless |mean| exceeds 10⁶ deviations.
    pub fn mean_std(&self, scores: &[f32]) -> (f32, f32) {
        // SAFETY: the table holds only kernels that this CPU can run.
        let (sum, squares) = unsafe { (self.kernels.sums)(scores) };
        if scores.is_empty() {
            return (0.0, 0.0);
        }
        let n = scores.len() as f64;
        let mean = sum / n;
        let variance = squares / n - mean * mean;
        let variance = if variance < 0.0 { 0.0 } else { variance };
        (mean as f32, variance.sqrt() as f32)
    }

    /// The k-th largest score, by selection; NaN counts as −∞. `scratch` is overwritten and keeps its capacity.
    ///
    /// # Panics
    /// If `k` is 0 or above `scores.len()`.
    pub fn kth_largest(&self, scores: &[f32], k: usize, scratch: &mut Vec<f32>) -> f32 {
        assert!((1..=scores.len()).contains(&k), "kth_largest: k = {k} of {} scores", scores.len());
        if scratch.len() <= scores.len() {
            scratch.resize(scores.len() + 1, 0.0);
        }
        kth_largest(scores, k, scratch)
    }

    /// The indices of the set bits, ascending, in place of what `ids` held. `ids` keeps room for all bits, so that
    /// calls with bitmaps of one size allocate once.
    ///
    /// # Panics
    /// If the bitmap has more than 2³² bits.
    pub fn mask_to_ids(&self, mask: &[u64], ids: &mut Vec<u32>) {
        assert!(mask.len() <= 1 << 26, "mask_to_ids: more than 2^32 bits");
        ids.clear();
        ids.reserve(mask.len() * 64);
        // SAFETY: the table holds only kernels that this CPU can run.
        let count = unsafe { (self.kernels.mask_to_ids)(mask, ids.spare_capacity_mut()) };
        // SAFETY: the kernel has written as many.
        unsafe { ids.set_len(count) };
    }
}

/// out ← the union of the rows of `masks` `[m, words]`.
///
/// # Panics
/// If `out.len()` is not `words`, or `masks.len()` is no multiple of `words`.
pub fn union_masks(masks: &[u64], words: usize, out: &mut [u64]) {
    assert_eq!(out.len(), words, "union_masks: out.len() is not words");
    out.fill(0);
    if words == 0 {
        assert!(masks.is_empty(), "union_masks: masks without words");
        return;
    }
    assert!(
        masks.len().is_multiple_of(words),
        "union_masks: masks.len() = {} is no multiple of words = {words}",
        masks.len()
    );
    for row in masks.chunks_exact(words) {
        for (out, &word) in out.iter_mut().zip(row) {
            *out |= word;
        }
    }
}

/// The number of set bits.
pub fn count_ones(mask: &[u64]) -> usize {
    mask.iter().map(|word| word.count_ones() as usize).sum()
}

fn check_mask(op: &str, values: &[f32], mask: &[u64]) {
    assert_eq!(mask.len(), mask_words(values.len()), "{op}: mask.len() is not ceil({} / 64)", values.len());
}
