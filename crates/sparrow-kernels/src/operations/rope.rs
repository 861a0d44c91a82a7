//! Rotary position embedding.

use crate::compute::Compute;

impl Compute {
    /// Rotary position embedding (RoFormer, arXiv 2104.09864), in place, in the half-split form of Llama and GPT-NeoX.
    ///
    /// `x` is `[rows, heads, head_dim]`; `cos` and `sin` are `[rows, rotary/2]`, the angles of each row's position. In
    /// each head, with h = rotary/2 and i < h: (xᵢ, xᵢ₊ₕ) ← (xᵢ·cosᵢ − xᵢ₊ₕ·sinᵢ, xᵢ₊ₕ·cosᵢ + xᵢ·sinᵢ). Dimensions from
    /// `rotary` on stay. Error at most 2 · 2⁻²⁴ · (|xᵢ| + |xᵢ₊ₕ|).
    ///
    /// # Panics
    /// If `rotary` is odd or above `head_dim`, if `x.len()` is no multiple of `heads * head_dim`, or if `cos` or `sin`
    /// has another length than `rows * rotary / 2`.
    pub fn rope(&self, x: &mut [f32], heads: usize, head_dim: usize, cos: &[f32], sin: &[f32], rotary: usize) {
        assert!(
            rotary <= head_dim && rotary.is_multiple_of(2),
            "rope: rotary = {rotary} must be even and at most head_dim = {head_dim}"
        );
        let (row, half) = (heads * head_dim, rotary / 2);
        assert!(
            x.is_empty() || (row > 0 && x.len().is_multiple_of(row)),
            "rope: x.len() = {} is no multiple of heads * head_dim = {row}",
            x.len()
        );
        let rows = x.len().checked_div(row).unwrap_or(0);
        assert_eq!(cos.len(), rows * half, "rope: cos.len() is not rows * rotary / 2");
        assert_eq!(sin.len(), rows * half, "rope: sin.len() is not rows * rotary / 2");
        if half == 0 {
            return;
        }
        self.workers.split_rows(x, row, 2 * row, &|r, x| {
            let (cos, sin) = (&cos[r * half..][..half], &sin[r * half..][..half]);
            // SAFETY: the table holds only kernels that this CPU can run.
            unsafe { (self.kernels.rope)(x, head_dim, cos, sin) }
        });
    }
}
