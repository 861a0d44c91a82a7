//! Sign agreement in portable Rust, which the compiler vectorises for the other tiers.

/// # Safety
/// None: unsafe only to fit the table.
pub(crate) unsafe fn sign_agreement_scalar(x: &[u64], w: &[u64], k: usize, out: &mut [f32]) {
    sign_agreement(x, w, k, out);
}

/// One row of `x` against as many rows of `w` as `out` has values.
#[inline(always)]
pub(super) fn sign_agreement(x: &[u64], w: &[u64], k: usize, out: &mut [f32]) {
    for (row, out) in w.chunks_exact(x.len()).zip(out) {
        let differing: u64 = x.iter().zip(row).map(|(a, b)| u64::from((a ^ b).count_ones())).sum();
        *out = (k as f32 - 2.0 * differing as f32) / k as f32;
    }
}
