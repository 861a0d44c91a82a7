//! Attention of rows that are alone in their caches: bound by reading the cache, so split into as many tasks as keep
//! any number of threads busy, by key head and by span of positions (Flash-Decoding, 2023). How a row is split depends
//! on its own length only. A span ends with its shift, its total and its sums; these are then merged.

use super::call::Call;
use crate::compute::Compute;
use crate::kernels::attention::span::{Span, expanded, scratch};
use crate::kv::KvRows;
use crate::parallel::SharedMut;
use std::ops::Range;

/// Spans of a row are not shorter than this, and there are not more of them.
const SHORTEST: usize = 256;
const MOST: usize = 16;

/// Positions of each span of a row that sees `len`; above 0.
fn span_len(len: usize) -> usize {
    len.div_ceil(MOST).next_multiple_of(64).max(SHORTEST)
}

impl Compute {
    /// Attention of `rows`, each on its own.
    pub(super) fn decode(&self, call: &Call, rows: Range<usize>) {
        let &Call { shape, q, kv, out } = call;
        let (d, group) = (shape.head_dim, shape.heads / shape.kv_heads);
        let (mut spans, mut most, mut seen) = (1, 0, 0);
        for row in rows.clone() {
            let view = kv(row);
            let len = view.len - view.start;
            spans = spans.max(len.div_ceil(span_len(len)));
            most = most.max(view.capacity().div_ceil(SHORTEST).min(MOST));
            seen += len;
        }
        // [rows, kv_heads, spans, group] sums of head_dim, then the largest scores and the totals.
        let units = rows.len() * shape.kv_heads * group;
        // Room for a full cache: it must not grow token by token.
        let mut partial = self.workers.scratch.take(units * most * (d + 2));
        let (sums, stats) = partial.split_at_mut(units * most * d);
        let (sums, stats) = (SharedMut::new(sums), SharedMut::new(stats.as_chunks_mut::<2>().0));
        let work = 2 * seen * shape.heads * d;
        self.workers.parallel(rows.len() * shape.kv_heads * spans, work, &|task| {
            let (unit, part) = (task / spans, task % spans);
            let (row, head) = (rows.start + unit / shape.kv_heads, unit % shape.kv_heads);
            let view = kv(row);
            let len = view.len - view.start;
            let start = part * span_len(len);
            let place = (row * shape.kv_heads + head) * group * d;
            let place = place..place + group * d;
            if start >= len {
                if part == 0 {
                    // SAFETY: tasks have disjoint rows, heads and spans, and the first alone writes a result.
                    unsafe { out.part(place) }.fill(0.0);
                }
                return;
            }
            let single = len <= span_len(len);
            // SAFETY: as above.
            let (sums, stats) = unsafe {
                let stats = stats.part(task * group..(task + 1) * group);
                let sums =
                    if single { out.part(place.clone()) } else { sums.part(task * group * d..(task + 1) * group * d) };
                (sums, stats)
            };
            let row_bytes = view.dtype().row_bytes(d);
            let count = span_len(len).min(len - start);
            let first = view.start + start;
            let sparse = matches!(view.rows, KvRows::Sparse(_));
            let mut scratch =
                self.workers.scratch.take(scratch(group, d) + if sparse { expanded(row_bytes) } else { 0 });
            let span = Span {
                q: q[place].as_ptr(),
                group,
                head_dim: d,
                pieces: view.pieces(self.expander(), head, d, first..first + count),
                row_bytes,
                scale: shape.scale,
                soft_cap: shape.soft_cap,
                out: sums.as_mut_ptr(),
                stats: stats.as_mut_ptr(),
                scratch: scratch.as_mut_ptr(),
            };
            // SAFETY: the table holds only kernels that this CPU can run; all parts have the stated shapes.
            unsafe { (self.kernels.span[view.dtype() as usize])(&span) };
            if single {
                for (out, &mut [_, total]) in sums.chunks_exact_mut(d).zip(stats) {
                    let share = 1.0 / total;
                    out.iter_mut().for_each(|v| *v *= share);
                }
            }
        });
        if spans < 2 {
            return;
        }
        self.workers.parallel(units, units * spans * d, &|unit| {
            let (row, head) = (rows.start + unit / shape.heads, unit % shape.heads);
            let view = kv(row);
            let count = (view.len - view.start).div_ceil(span_len(view.len - view.start));
            if count < 2 {
                return;
            }
            let place = (row * shape.heads + head) * d;
            // SAFETY: every head of every row belongs to one task.
            let out = unsafe { out.part(place..place + d) };
            let part = |span: usize| {
                let at = (unit / group * spans + span) * group + unit % group;
                // SAFETY: the spans are written no more.
                unsafe { (&*sums.part(at * d..(at + 1) * d), stats.part(at..at + 1)[0]) }
            };
            let largest = (0..count).map(|s| part(s).1[0]).fold(f32::NEG_INFINITY, f32::max);
            let shift = if largest == f32::NEG_INFINITY { 0.0 } else { largest };
            out.fill(0.0);
            let mut total = 0.0;
            for span in 0..count {
                let (sums, [max, sum]) = part(span);
                let weight = (max - shift).exp();
                total += weight * sum;
                for (out, v) in out.iter_mut().zip(sums) {
                    *out += weight * *v;
                }
            }
            let share = 1.0 / total;
            out.iter_mut().for_each(|v| *v *= share);
        });
    }
}
