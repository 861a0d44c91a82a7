//! The handle through which every operation runs.

use crate::cpu::{self, Isa, IsaUnavailable};
use crate::parallel::{Pool, Workers};
use crate::system::default_threads;
use crate::table::Kernels;

/// Kernels of one tier, a thread pool, and scratch memory that grows on first use.
///
/// The operations are its methods; all take `&self`, and concurrent calls take turns on the pool.
pub struct Compute {
    pub(crate) kernels: &'static Kernels,
    pub(crate) workers: Workers,
}

impl Compute {
    /// The best tier of this CPU, capped by `SPARROW_ISA`, on `threads` threads.
    ///
    /// The default number of threads is [`default_threads`].
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
        Ok(Self { kernels, workers: Workers::new(threads.unwrap_or_else(default_threads)) })
    }

    /// One for every table of kernels that this CPU can run, whatever `SPARROW_ISA` says, on `threads` threads: of tiers that
    /// use more than they need, such as VNNI, also the tables that do without it, so that they are tested where nothing would
    /// choose them.
    pub fn all(threads: usize) -> Vec<Self> {
        Kernels::all().map(|kernels| Self { kernels, workers: Workers::new(threads) }).collect()
    }

    /// The tier in use.
    pub fn isa(&self) -> Isa {
        self.kernels.isa()
    }

    /// The table of kernels in use: the tier, and what it uses of what only some CPUs of the tier have, as in `avx2 with
    /// AVX-VNNI`.
    pub fn table(&self) -> &'static str {
        self.kernels.name
    }

    /// Threads of the pool, the caller included.
    pub fn threads(&self) -> usize {
        self.workers.threads()
    }

    /// The pool, for parallel work beside the operations.
    pub fn pool(&self) -> &Pool {
        &self.workers.pool
    }

    /// Whether the process was forked after this was made: its threads are then not in the child, where [`Pool::run`]
    /// panics.
    pub fn is_forked(&self) -> bool {
        self.workers.pool.is_forked()
    }
}
