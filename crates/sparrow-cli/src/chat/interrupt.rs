//! Ctrl-C stops an answer, not the program.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};

use anyhow::Context;
use sparrow::session::Cancel;

/// Hears of Ctrl-C.
pub struct Interrupt {
    cancel: Cancel,
    answering: Arc<AtomicBool>,
}

impl Interrupt {
    /// From here on Ctrl-C stops what runs. Where lines come from no terminal it leaves while one is awaited: nothing is lost then.
    pub fn install(terminal: bool) -> anyhow::Result<Self> {
        let interrupt = Interrupt { cancel: Cancel::default(), answering: Arc::default() };
        let (cancel, answering) = (interrupt.cancel.clone(), interrupt.answering.clone());
        let heard = move || match answering.load(SeqCst) {
            true => cancel.cancel(),
            false if terminal => {}
            false => std::process::exit(0),
        };
        ctrlc::set_handler(heard).context("Ctrl-C")?;
        Ok(interrupt)
    }

    /// What it stops.
    pub fn cancel(&self) -> &Cancel {
        &self.cancel
    }

    /// Does something that Ctrl-C stops.
    pub fn stops<T>(&self, work: impl FnOnce() -> T) -> T {
        self.cancel.reset();
        self.answering.store(true, SeqCst);
        let done = work();
        self.answering.store(false, SeqCst);
        done
    }
}
