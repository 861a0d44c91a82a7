//! Rows that are written on all cores.

/// Has `fill(state, i, row)` write every row of `row_bytes` of `out`; each thread makes a state of its own.
pub(super) fn fill_rows<S>(
    out: &mut [u8],
    row_bytes: usize,
    state: impl Fn() -> S + Sync,
    fill: impl Fn(&mut S, usize, &mut [u8]) + Sync,
) {
    // Fewer bytes are written sooner than a thread starts.
    const ALONE: usize = 1 << 18;
    let threads = if out.len() < ALONE { 1 } else { std::thread::available_parallelism().map_or(1, usize::from) };
    let rows = out.len() / row_bytes.max(1);
    let part = rows.div_ceil(threads).max(1);
    let run = |first: usize, out: &mut [u8]| {
        let mut state = state();
        for (i, row) in out.chunks_exact_mut(row_bytes).enumerate() {
            fill(&mut state, first + i, row);
        }
    };
    if threads == 1 {
        return run(0, out);
    }
    std::thread::scope(|scope| {
        for (p, out) in out.chunks_mut(part * row_bytes).enumerate() {
            let run = &run;
            scope.spawn(move || run(p * part, out));
        }
    });
}
