//! The loops around an [`Engine`].

use super::source::Source;
use super::{Engine, Gemm, MAX_ROWS, Outputs, Part};
use crate::parallel::{SharedMut, Workers};
use std::ops::Range;

/// Activations that share one packing of the weights.
const MAX_TOKENS: usize = 512;
/// Tasks per thread, to even out.
const TASKS: usize = 4;

/// out = x · Wᵀ + bias with the kernels of `E`.
///
/// # Safety
/// See [`GemmFn`](super::GemmFn).
pub(crate) unsafe fn drive<E: Engine>(workers: &Workers, gemm: &Gemm) {
    let outputs: usize = gemm.parts.iter().map(|p| gemm.outputs(p)).sum();
    let share = outputs.div_ceil(TASKS * workers.threads()).next_multiple_of(E::ROWS);
    let rows = share.clamp(E::ROWS, MAX_ROWS / E::ROWS * E::ROWS);
    let tasks = gemm.parts.iter().map(|p| gemm.outputs(p).div_ceil(rows)).sum();
    for start in (0..gemm.m).step_by(MAX_TOKENS) {
        let tokens = start..gemm.m.min(start + MAX_TOKENS);
        let work = outputs * gemm.k * tokens.len();
        let strips = tokens.len().div_ceil(E::TOKENS);
        let padded = gemm.k.next_multiple_of(E::STEP);
        let strip_bytes = E::TOKENS * padded * E::X_BYTES;
        let mut packed = workers.scratch.take_aligned(strips * strip_bytes);
        let (packed_x, block_bytes) = (SharedMut::new(&mut packed), strips * E::TOKENS * E::BLOCK * E::X_BYTES);
        let blocks = gemm.k.div_ceil(E::BLOCK);
        // Block by block, and strip by strip in a block: each strip of a block is one contiguous piece.
        workers.parallel(strips * blocks, gemm.m * gemm.k * 4, &|task| {
            let (block, strip) = (task / strips, task % strips);
            let (k, token) = (block * E::BLOCK, tokens.start + strip * E::TOKENS);
            let len = E::BLOCK.min(gemm.k - k);
            let bytes = E::TOKENS * len.next_multiple_of(E::STEP) * E::X_BYTES;
            let at = block * block_bytes + strip * bytes;
            // SAFETY: tasks have disjoint pieces; x is [m, k], and the piece has the size of the packed strip.
            unsafe {
                let to = packed_x.part(at..at + bytes);
                E::pack_x(gemm, token..tokens.end.min(token + E::TOKENS), k, len, to.as_mut_ptr());
            }
        });
        let packed = &*packed;
        workers.parallel(tasks, work, &|task| {
            let mut task = task;
            for part in gemm.parts {
                let n = gemm.outputs(part);
                let here = n.div_ceil(rows);
                if task < here {
                    let range = task * rows..n.min((task + 1) * rows);
                    // SAFETY: the contract is the caller's; each task writes only the columns of its outputs.
                    unsafe { block_of_rows::<E>(workers, gemm, part, range, tokens.clone(), packed) };
                    return;
                }
                task -= here;
            }
        });
    }
}

/// Outputs `range` of one part, for `tokens`, whose packed activations are `packed`.
///
/// # Safety
/// See [`GemmFn`](super::GemmFn); no other thread may write these columns of the result.
unsafe fn block_of_rows<E: Engine>(
    workers: &Workers,
    gemm: &Gemm,
    part: &Part,
    range: Range<usize>,
    tokens: Range<usize>,
    packed: &[u8],
) {
    let (strips, panels) = (tokens.len().div_ceil(E::TOKENS), range.len().div_ceil(E::ROWS));
    let (n, layout) = (gemm.outputs(part), gemm.layout);
    let panel_bytes = E::ROWS * E::BLOCK * E::W_BYTES;
    let sum_bytes = E::ROWS * E::TOKENS * E::SUM_BYTES;
    let mut scratch = workers.scratch.take_aligned(panels * (panel_bytes + strips * sum_bytes));
    let (packed_w, sums) = scratch.split_at_mut(panels * panel_bytes);
    let mut packed_x = packed;
    let mut source = Source::new::<E>(&workers.scratch, gemm, part.weights, range.clone());
    // SAFETY: the caller vouches for the features; the operands have the shapes that the calls are told.
    unsafe { E::start() };
    for k in (0..gemm.k).step_by(E::BLOCK) {
        let len = E::BLOCK.min(gemm.k - k);
        let (first, last) = (k == 0, k + len == gemm.k);
        source.start_block(k, len);
        for (p, to) in packed_w.chunks_exact_mut(panel_bytes).enumerate() {
            let row = range.start + p * E::ROWS;
            let rows = E::ROWS.min(range.end - row);
            // SAFETY: as above; a panel has at most this many bytes.
            unsafe { E::pack_w(&source.panel(row, rows, k, len), to.as_mut_ptr()) };
        }
        let padded = len.next_multiple_of(E::STEP);
        let strip_bytes = E::TOKENS * padded * E::X_BYTES;
        // The weights of the next block are on their way while this one is multiplied, evenly spread over the products.
        let ahead = k + len;
        let next = source.ahead(ahead, E::BLOCK.min(gemm.k - ahead));
        let (mut product, mut asked) = (0, 0);
        for s in 0..strips {
            let x = packed_x[s * strip_bytes..(s + 1) * strip_bytes].as_ptr();
            for p in 0..panels {
                let w = packed_w[p * panel_bytes..(p + 1) * panel_bytes].as_ptr();
                let sums = sums[(s * panels + p) * sum_bytes..][..sum_bytes].as_mut_ptr().cast::<f32>();
                // The next strip of activations too: it comes from the last level.
                let share = strip_bytes.div_ceil(panels);
                for line in (p * share..strip_bytes.min((p + 1) * share)).step_by(64) {
                    // SAFETY: as above.
                    unsafe { E::prefetch(x.wrapping_add(strip_bytes + line), false) };
                }
                product += 1;
                if !last {
                    while asked * strips * panels < product * next.count() {
                        for (start, bytes) in next.piece(asked) {
                            for line in (0..bytes).step_by(64) {
                                // SAFETY: as above.
                                unsafe { E::prefetch(start.wrapping_add(line), false) };
                            }
                        }
                        asked += 1;
                    }
                } else {
                    let (row, token) = (range.start + p * E::ROWS, tokens.start + s * E::TOKENS);
                    for t in token..tokens.end.min(token + E::TOKENS) {
                        for line in (0..E::ROWS).step_by(16) {
                            let to = part.out.pointer(t * n + row).wrapping_add(line);
                            // SAFETY: as above.
                            unsafe { E::prefetch(to.cast(), true) };
                        }
                    }
                }
                // SAFETY: as above; strip and panel have `padded` elements per row, the sums are aligned for f32.
                unsafe { E::multiply(layout, w, x, padded, first, sums) };
                if last {
                    let (row, token) = (range.start + p * E::ROWS, tokens.start + s * E::TOKENS);
                    let rows = E::ROWS.min(range.end - row);
                    let bias = part.bias.map_or(std::ptr::null(), |b| b[row..row + rows].as_ptr());
                    let out = part.out.pointer(token * n + row);
                    let outputs = Outputs { weights: part.weights, row, rows };
                    let here = token..tokens.end.min(token + E::TOKENS);
                    // SAFETY: as above; rows and tokens are inside out, and this task alone writes there.
                    unsafe { E::finish(gemm, &outputs, here, sums, bias, out, n) };
                }
            }
        }
        packed_x = &packed_x[strips * strip_bytes..];
    }
    // SAFETY: as above.
    unsafe { E::stop() };
}
