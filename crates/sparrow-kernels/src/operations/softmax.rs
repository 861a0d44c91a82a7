//! Softmax, and the index of the largest value.

use crate::compute::Compute;

impl Compute {
    /// xᵢ ← exp(xᵢ − max x) / Σⱼ exp(xⱼ − max x), over the whole slice.
    ///
    /// Relative error at most (n/32 + 24) · 2⁻²⁴, for results above 10⁻³⁰. A NaN, a positive infinity, or nothing but
    /// negative infinities makes every result NaN.
    pub fn softmax(&self, x: &mut [f32]) {
        // SAFETY: the table holds only kernels that this CPU can run.
        unsafe { (self.kernels.softmax)(x) }
    }

    /// The index of the largest value, the first of equals; NaN counts only if there is nothing else, then the answer
    /// is 0.
    ///
    /// An empty slice gives 0.
    pub fn argmax(&self, x: &[f32]) -> usize {
        // SAFETY: the table holds only kernels that this CPU can run.
        let best = unsafe { (self.kernels.max_ignoring_nan)(x) };
        x.iter().position(|&v| v == best).unwrap_or(0)
    }
}
