//! Sign bits: how many products of a dot product are positive, without computing one (SparseInfer, arXiv 2411.12692).

use super::select::mask_words;
use crate::compute::Compute;
use crate::dtype::{Matrix, decode};

impl Compute {
    /// Bit i of a row ← whether valueᵢ of the row is negative (−0 and negative NaN are, +0 is not).
    ///
    /// `values` is `[m, k]`, `signs` `[m, ceil(k/64)]`; bits from k on are zero.
    ///
    /// # Panics
    /// If `k` is 0 or a length does not match.
    pub fn pack_signs(&self, values: &[f32], k: usize, signs: &mut [u64]) {
        assert!(k > 0 && values.len().is_multiple_of(k), "pack_signs: values.len() is no multiple of k = {k}");
        assert_eq!(signs.len(), values.len() / k * mask_words(k), "pack_signs: signs.len() is not m * ceil({k} / 64)");
        for (values, signs) in values.chunks_exact(k).zip(signs.chunks_exact_mut(mask_words(k))) {
            for (word, values) in signs.iter_mut().zip(values.chunks(64)) {
                let bit = |(i, v): (usize, &f32)| u64::from(v.to_bits() >> 31) << i;
                *word = values.iter().enumerate().map(bit).sum();
            }
        }
    }

    /// The sign bits of every row of `weights` `[n, k]`, `[n, ceil(k/64)]`.
    pub fn weight_signs(&self, weights: Matrix) -> Vec<u64> {
        let (n, k) = (weights.rows(), weights.cols());
        let mut signs = vec![0; n * mask_words(k)];
        let mut row = vec![0.0; k];
        for (i, signs) in signs.chunks_exact_mut(mask_words(k).max(1)).enumerate() {
            decode(weights.dtype(), weights.row(i), &mut row);
            self.pack_signs(&row, k, signs);
        }
        signs
    }

    /// out\[r, i\] = (k − 2·d) / k, where d counts the inputs whose sign differs between row r of `x` and row i of `w`:
    /// the share of positive products less that of negative ones, an estimate of the sign of their dot product. Exact
    /// up to the rounding of the division: every tier gives the same bits.
    ///
    /// `x` is `[m, ceil(k/64)]` and `w` `[n, ceil(k/64)]`, as [`pack_signs`](Self::pack_signs) makes them; `out` is
    /// `[m, n]`.
    ///
    /// # Panics
    /// If `k` is 0, or a length does not match these shapes.
    pub fn sign_agreement(&self, x: &[u64], w: &[u64], k: usize, out: &mut [f32]) {
        let words = mask_words(k);
        assert!(k > 0, "sign_agreement: k is 0");
        assert!(x.len().is_multiple_of(words) && w.len().is_multiple_of(words), "sign_agreement: not rows of {k} bits");
        let n = w.len() / words;
        assert_eq!(out.len(), x.len() / words * n, "sign_agreement: out.len() is not m * n");
        for (x, out) in x.chunks_exact(words).zip(out.chunks_exact_mut(n.max(1))) {
            // A word costs about as much as two multiply-adds of a matrix kernel.
            self.workers.split_mut_indexed(out, 2 * words, &|start, out| {
                let w = &w[start * words..(start + out.len()) * words];
                // SAFETY: the table holds only kernels that this CPU can run.
                unsafe { (self.kernels.sign_agreement)(x, w, k, out) }
            });
        }
    }
}
