//! The threads and the scratch memory of an operation.

use super::pool::Pool;
use super::scratch::Scratch;
use super::shared_mut::SharedMut;

/// Below this many multiply-adds a parallel region costs more than it gains.
const PARALLEL_FROM: usize = 16 * 1024;

/// A thread pool, and memory for its tasks.
pub(crate) struct Workers {
    pub(crate) pool: Pool,
    pub(crate) scratch: Scratch,
}

impl Workers {
    pub(crate) fn new(threads: usize) -> Self {
        Self { pool: Pool::new(threads), scratch: Scratch::new() }
    }

    /// Threads of the pool, the caller included.
    pub(crate) fn threads(&self) -> usize {
        self.pool.threads()
    }

    /// Runs `f` for each task, in parallel if `work` multiply-adds in all are worth it.
    pub(crate) fn parallel(&self, tasks: usize, work: usize, f: &(dyn Fn(usize) + Sync)) {
        if work < PARALLEL_FROM {
            (0..tasks).for_each(f);
        } else {
            self.pool.run(tasks, f);
        }
    }

    /// The number of tasks for `units` units of equal work, `work` multiply-adds in all: enough for the threads to even
    /// out, none too small.
    pub(crate) fn tasks(&self, units: usize, work: usize) -> usize {
        (work / PARALLEL_FROM).min(4 * self.threads()).clamp(1, units.max(1))
    }

    /// Calls `f` with contiguous parts of `x`, each value costing `cost` multiply-adds.
    pub(crate) fn split_mut(&self, x: &mut [f32], cost: usize, f: &(dyn Fn(&mut [f32]) + Sync)) {
        self.split_mut_indexed(x, cost, &|_, part| f(part));
    }

    /// As [`split_mut`](Self::split_mut), with the index of the first value of the part.
    pub(crate) fn split_mut_indexed(&self, x: &mut [f32], cost: usize, f: &(dyn Fn(usize, &mut [f32]) + Sync)) {
        let (n, work) = (x.len(), x.len() * cost);
        let part = n.div_ceil(self.tasks(n, work)).next_multiple_of(16);
        let out = SharedMut::new(x);
        self.parallel(n.div_ceil(part.max(1)), work, &|task| {
            let range = task * part..n.min((task + 1) * part);
            // SAFETY: tasks have disjoint ranges.
            f(range.start, unsafe { out.part(range) });
        });
    }

    /// Calls `f` with each row of `x` `[rows, n]` and its number; a row costs `cost` multiply-adds.
    pub(crate) fn split_rows(&self, x: &mut [f32], n: usize, cost: usize, f: &(dyn Fn(usize, &mut [f32]) + Sync)) {
        let rows = x.len().checked_div(n).unwrap_or(0);
        let part = rows.div_ceil(self.tasks(rows, rows * cost)).max(1);
        let out = SharedMut::new(x);
        self.parallel(rows.div_ceil(part), rows * cost, &|task| {
            for row in task * part..rows.min((task + 1) * part) {
                // SAFETY: every row belongs to one task.
                f(row, unsafe { out.part(row * n..(row + 1) * n) });
            }
        });
    }
}
