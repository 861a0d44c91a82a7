//! The kernels and threads that all operators share.
//!
//! A pool of threads does not survive a fork, so a child makes its own; and pools are never dropped, so one that the number
//! of threads was changed from is found again.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use sparrow_kernels::{Compute, Isa};

use super::fault::{Fault, Result};
use super::shim;

/// One pool, and the one made after it.
struct Made {
    compute: Compute,
    asked: usize,
    next: OnceLock<&'static Made>,
}

static FIRST: OnceLock<&'static Made> = OnceLock::new();
/// Threads to compute on; 0 until it is known.
static THREADS: AtomicUsize = AtomicUsize::new(0);

/// The number of threads: torch's at first use, if none was set.
pub fn threads() -> Result<usize> {
    if THREADS.load(Relaxed) == 0 {
        let threads = shim::torch_threads()?.max(1);
        // Another thread may have been faster.
        let _ = THREADS.compare_exchange(0, threads, Relaxed, Relaxed);
    }
    Ok(THREADS.load(Relaxed))
}

/// Lets the operators run on so many threads from now on.
pub fn set_threads(threads: usize) {
    THREADS.store(threads, Relaxed);
}

/// What operators compute with.
pub fn compute() -> Result<&'static Compute> {
    let threads = threads()?;
    let mut place = &FIRST;
    while let Some(made) = place.get() {
        if made.asked == threads && !made.compute.is_forked() {
            return Ok(&made.compute);
        }
        place = &made.next;
    }
    make(threads, place)
}

/// Adds a pool at the end of the list, which begins at `place` or later.
#[cold]
fn make(threads: usize, mut place: &'static OnceLock<&'static Made>) -> Result<&'static Compute> {
    if let Ok(name) = std::env::var("SPARROW_ISA")
        && !name.is_empty()
    {
        name.parse::<Isa>().map_err(|error| Fault::Option(format!("SPARROW_ISA: {error}")))?;
    }
    let made = Made { compute: Compute::new(Some(threads)), asked: threads, next: OnceLock::new() };
    let mut made: &'static Made = Box::leak(Box::new(made));
    let compute = &made.compute;
    while let Err(refused) = place.set(made) {
        made = refused;
        match place.get() {
            Some(other) => place = &other.next,
            None => return Err(Fault::Internal("the list of pools is neither empty nor not".into())),
        }
    }
    Ok(compute)
}
