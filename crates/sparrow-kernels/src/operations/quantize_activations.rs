//! Activations in 16-bit integers, for weights of int8 and of codes.

use crate::compute::Compute;
use crate::parallel::SharedMut;
use crate::rows::Int16Activations;
use crate::rows::int16::Int16Layout;

impl Compute {
    /// The rows of x `[m, k]`, each quantised with the scale max |x| / 32512, to nearest, ties to even. A row with NaN
    /// or infinity has the scale NaN.
    pub(crate) fn quantize_activations(&self, x: &[f32], m: usize) -> Int16Activations<'_> {
        let k = x.len() / m;
        let layout = Int16Layout::of(k);
        let row_bytes = layout.row_bytes();
        let mut bytes = self.workers.scratch.take_aligned(m * row_bytes);
        let rows = SharedMut::new(&mut bytes[..]);
        self.workers.parallel(m, 4 * x.len(), &|t| {
            // SAFETY: each task has its own row.
            let row = unsafe { rows.part(t * row_bytes..(t + 1) * row_bytes) };
            // SAFETY: the table holds only kernels that this CPU can run.
            unsafe { (self.kernels.quantize)(&x[t * k..(t + 1) * k], row) };
        });
        Int16Activations::of(bytes, layout)
    }
}
