//! Normalisation of rows, and the residual sum.

use crate::compute::Compute;

impl Compute {
    /// RMSNorm (arXiv 1910.07467) of each row: outᵢ = xᵢ / √(mean(x²) + eps) · (weightᵢ + weight_offset).
    ///
    /// `x` and `out` are `[rows, n]`, `weight` is `[n]`, and `rows = x.len() / n`. `weight_offset` is 0, or 1 for
    /// Gemma, whose checkpoints store weight − 1. Relative error at most (n/32 + 16) · 2⁻²⁴.
    ///
    /// # Panics
    /// If `weight` is empty while `x` is not, if `x.len()` is no multiple of `weight.len()`, or if `out.len()` differs
    /// from `x.len()`.
    pub fn rms_norm(&self, x: &[f32], weight: &[f32], weight_offset: f32, eps: f32, out: &mut [f32]) {
        let n = check_rows("rms_norm", x, weight, out);
        self.workers.split_rows(out, n, n * 4, &|row, out| {
            let x = &x[row * n..][..n];
            // SAFETY: the table holds only kernels that this CPU can run.
            unsafe { (self.kernels.rms_norm)(x, weight, weight_offset, eps, out) }
        });
    }

    /// Layer normalisation (arXiv 1607.06450) of each row: outᵢ = (xᵢ − mean) / √(variance + eps) · weightᵢ + biasᵢ,
    /// with the population variance, computed around the mean.
    ///
    /// Shapes as in [`rms_norm`](Self::rms_norm); `bias` is `[n]` or absent. The mean is accurate to (n/32 + 16) · 2⁻²⁴
    /// · mean(|x|), which bounds the absolute error before scaling.
    ///
    /// # Panics
    /// As [`rms_norm`](Self::rms_norm), and if `bias` has another length than `weight`.
    pub fn layer_norm(&self, x: &[f32], weight: &[f32], bias: Option<&[f32]>, eps: f32, out: &mut [f32]) {
        let n = check_rows("layer_norm", x, weight, out);
        if let Some(bias) = bias {
            assert_eq!(bias.len(), n, "layer_norm: bias.len() and weight.len() differ");
        }
        self.workers.split_rows(out, n, n * 6, &|row, out| {
            let x = &x[row * n..][..n];
            // SAFETY: the table holds only kernels that this CPU can run.
            unsafe { (self.kernels.layer_norm)(x, weight, bias, eps, out) }
        });
    }

    /// xᵢ ← xᵢ + yᵢ, any shape; exactly rounded.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn add_assign(&self, x: &mut [f32], y: &[f32]) {
        assert_eq!(x.len(), y.len(), "add_assign: x.len() and y.len() differ");
        self.workers.split_mut_indexed(x, 1, &|start, x| {
            let y = &y[start..][..x.len()];
            // SAFETY: the table holds only kernels that this CPU can run.
            unsafe { (self.kernels.add_assign)(x, y) }
        });
    }
}

/// The row length; panics if the shapes do not fit.
fn check_rows(op: &str, x: &[f32], weight: &[f32], out: &[f32]) -> usize {
    let n = weight.len();
    assert!(
        x.is_empty() || (n > 0 && x.len().is_multiple_of(n)),
        "{op}: x.len() = {} is no multiple of weight.len() = {n}",
        x.len()
    );
    assert_eq!(x.len(), out.len(), "{op}: x.len() and out.len() differ");
    n
}
