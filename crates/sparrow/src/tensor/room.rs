//! Memory is asked for before it is taken: where it runs out the system ends the process instead of refusing.

use sparrow_kernels::available_memory;

use crate::error::{Error, Result};

/// Less than this is not worth asking for.
const ASKED_FROM: u64 = 16 << 20;

/// Refuses what there is no memory for.
///
/// # Errors
/// Says what `what` need, how much there is, and the `mend` that takes less.
pub fn ask(what: impl FnOnce() -> String, needed: u64, mend: &'static str) -> Result<()> {
    if needed < ASKED_FROM {
        return Ok(());
    }
    match available_memory() {
        Some(available) if needed > available => Err(Error::Memory { what: what(), needed, available, mend }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_than_any_machine_has_is_refused_with_the_mend() {
        ask(|| unreachable!(), ASKED_FROM - 1, "").unwrap();
        ask(|| unreachable!(), 0, "").unwrap();
        if available_memory().is_some() {
            let message = ask(|| "the stars".into(), u64::MAX, "count fewer").unwrap_err().to_string();
            assert!(message.starts_with("the stars need 18446744073710 MB of memory, and "), "{message}");
            assert!(message.ends_with(" MB are available: count fewer"), "{message}");
        }
    }
}
