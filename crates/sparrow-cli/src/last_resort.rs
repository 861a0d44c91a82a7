//! What is told of a panic: a bug, whatever the user did.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind, set_hook};
use std::sync::{Mutex, PoisonError};

use anyhow::anyhow;

/// The last panic of any thread.
static LAST: Mutex<String> = Mutex::new(String::new());

/// Runs a command; a panic becomes an error like others.
///
/// # Errors
/// The command's.
pub fn guard(command: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<()> {
    // Nothing is printed at once: some panics are caught where they are expected, of libraries given malformed files.
    set_hook(Box::new(remember));
    catch_unwind(AssertUnwindSafe(command)).unwrap_or_else(|_| {
        let last = LAST.lock().unwrap_or_else(PoisonError::into_inner);
        Err(anyhow!("this is a bug in Sparrow, please report it with the command that shows it: {last}"))
    })
}

fn remember(panic: &PanicHookInfo) {
    let message = panic.payload_as_str().unwrap_or("no message");
    let place = panic.location().map_or(String::new(), |place| format!(" ({}:{})", place.file(), place.line()));
    // Only with RUST_BACKTRACE.
    let trace = Backtrace::capture();
    let trace = if trace.status() == BacktraceStatus::Captured { format!("\n{trace}") } else { String::new() };
    *LAST.lock().unwrap_or_else(PoisonError::into_inner) = format!("{message}{place}{trace}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_an_error_that_says_where() {
        let message = guard(|| panic!("the moon is gone")).unwrap_err().to_string();
        assert!(message.contains("a bug in Sparrow") && message.contains("the moon is gone ("), "{message}");
        assert!(message.contains("last_resort.rs:"), "{message}");
        guard(|| Ok(())).unwrap();
        let other = guard(|| anyhow::bail!("no such file")).unwrap_err().to_string();
        assert_eq!(other, "no such file");
    }
}
