//! Rows that are written on all cores.

use sparrow_kernels::{Pool, default_threads};

/// Has `fill(state, i, row)` write every row of `row_bytes` of `out`; each thread makes a state of its own.
pub(super) fn fill_rows<S>(
    out: &mut [u8],
    row_bytes: usize,
    state: impl Fn() -> S + Sync,
    fill: impl Fn(&mut S, usize, &mut [u8]) + Sync,
) {
    // Fewer bytes are written sooner than a thread starts.
    const ALONE: usize = 1 << 18;
    let pool = Pool::new(if out.len() < ALONE { 1 } else { default_threads() });
    let rows = out.len() / row_bytes.max(1);
    let part = rows.div_ceil(pool.threads()).max(1);
    pool.for_chunks(out, (part * row_bytes).max(1), &|p, out| {
        let mut state = state();
        for (i, row) in out.chunks_exact_mut(row_bytes).enumerate() {
            fill(&mut state, p * part + i, row);
        }
    });
}
