//! The handle through which every operation runs.

use crate::cpu::{self, Isa, IsaUnavailable};
use crate::pool::Pool;
use crate::scratch::Scratch;
use crate::shared_mut::SharedMut;
use crate::table::Kernels;

/// Below this many multiply-adds a parallel region costs more than it gains.
const PARALLEL_FROM: usize = 16 * 1024;

/// Kernels of one tier, a thread pool, and scratch memory that grows on first use.
///
/// The operations are its methods; all take `&self`, and concurrent calls take turns on the pool.
pub struct Compute {
    pub(crate) kernels: &'static Kernels,
    pub(crate) pool: Pool,
    pub(crate) scratch: Scratch,
}

impl Compute {
    /// The best tier of this CPU, capped by `SPARROW_ISA`, on `threads` threads.
    ///
    /// The default number of threads is [`std::thread::available_parallelism`], which honours cgroup quotas.
    ///
    /// # Panics
    /// If `SPARROW_ISA` is set and names no tier.
    pub fn new(threads: Option<usize>) -> Self {
        Self::with_isa(Isa::best(), threads).expect("the best tier is available")
    }

    /// The given tier, whatever `SPARROW_ISA` says.
    ///
    /// # Errors
    /// If the CPU or the system lacks the tier.
    pub fn with_isa(isa: Isa, threads: Option<usize>) -> Result<Self, IsaUnavailable> {
        let kernels = Kernels::select(isa)
            .ok_or_else(|| IsaUnavailable { isa, reason: cpu::missing(isa).unwrap_or_default() })?;
        let threads = threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, std::num::NonZero::get));
        Ok(Self { kernels, pool: Pool::new(threads), scratch: Scratch::default() })
    }

    /// The tier in use.
    pub fn isa(&self) -> Isa {
        self.kernels.isa()
    }

    /// Threads of the pool, the caller included.
    pub fn threads(&self) -> usize {
        self.pool.threads()
    }

    /// The pool, for parallel work beside the operations.
    pub fn pool(&self) -> &Pool {
        &self.pool
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
