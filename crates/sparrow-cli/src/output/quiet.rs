//! `--quiet`.

use std::sync::atomic::{AtomicBool, Ordering};

/// Whether only results and errors are wanted.
static QUIET: AtomicBool = AtomicBool::new(false);

/// From here on only results and errors are printed.
pub fn be_quiet() {
    QUIET.store(true, Ordering::Relaxed);
}

/// Whether only results and errors are wanted.
pub fn is_quiet() -> bool {
    QUIET.load(Ordering::Relaxed)
}
