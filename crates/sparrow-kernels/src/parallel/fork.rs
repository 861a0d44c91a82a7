//! Whether the process was forked since something was made.
//!
//! A fork copies the memory of a process but of its threads only the one that forks: in the child a pool has no
//! workers, and a lock that another thread held stays locked for ever. No lock and no counter of ours shows that, so
//! the system is asked to count forks.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// How many forks lie between this process and the one that first made a [`Generation`].
static FORKS: AtomicU32 = AtomicU32::new(0);

/// The process that something was made in.
#[derive(Clone, Copy)]
pub(super) struct Generation(u32);

impl Generation {
    /// This process.
    pub(super) fn now() -> Self {
        count_forks();
        Self(FORKS.load(Relaxed))
    }

    /// Whether this process is a child of that one, or a child of a child.
    #[inline]
    pub(super) fn is_past(self) -> bool {
        self.0 != FORKS.load(Relaxed)
    }
}

/// Makes every fork count.
#[cfg(unix)]
fn count_forks() {
    extern "C" fn in_child() {
        FORKS.fetch_add(1, Relaxed);
    }
    static REGISTERED: std::sync::Once = std::sync::Once::new();
    REGISTERED.call_once(|| {
        // SAFETY: the handler only adds to an atomic number, which a forked child may do.
        let failure = unsafe { libc::pthread_atfork(None, None, Some(in_child)) };
        assert_eq!(failure, 0, "pthread_atfork: out of memory");
    });
}

/// Nothing forks.
#[cfg(not(unix))]
fn count_forks() {}
