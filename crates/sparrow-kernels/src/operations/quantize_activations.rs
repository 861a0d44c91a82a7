//! Activations quantised to int8, for int8 weights.

use crate::compute::Compute;
use crate::parallel::SharedMut;
use crate::rows::{Int8Activations, int8};

impl Compute {
    /// The rows of x `[m, k]`, each quantised with the scale max |x| / 127, to nearest, ties to even. A row with NaN or
    /// infinity has the scale NaN.
    pub(crate) fn quantize_activations(&self, x: &[f32], m: usize) -> Int8Activations<'_> {
        let k = x.len() / m;
        let [padded, row_bytes] = int8::row_bytes(k);
        let mut bytes = self.workers.scratch.take_aligned(m * row_bytes);
        let rows = SharedMut::new(&mut bytes[..]);
        self.workers.parallel(m, 4 * x.len(), &|t| {
            // SAFETY: each task has its own row.
            let row = unsafe { rows.part(t * row_bytes..(t + 1) * row_bytes) };
            let (codes, stats) = row.split_at_mut(padded);
            // SAFETY: the table holds only kernels that this CPU can run.
            let (scale, sum) = unsafe { (self.kernels.quantize)(&x[t * k..(t + 1) * k], codes) };
            stats[..4].copy_from_slice(&sum.to_ne_bytes());
            stats[4..8].copy_from_slice(&scale.to_ne_bytes());
        });
        Int8Activations::of(bytes, row_bytes)
    }
}
