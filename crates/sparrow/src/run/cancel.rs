//! Stopping work that has begun.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use crate::error::{Error, Result};

/// Stops work between two layers; clones belong together, and any thread may ask.
#[derive(Clone, Default)]
pub struct Cancel {
    asked: Arc<AtomicBool>,
    poll: Option<Arc<dyn Fn() -> bool + Send + Sync>>,
}

impl Cancel {
    /// One that also asks `poll`, on the thread that works, before every layer: whether to stop.
    pub fn with_poll(poll: impl Fn() -> bool + Send + Sync + 'static) -> Self {
        Cancel { asked: Arc::default(), poll: Some(Arc::new(poll)) }
    }

    /// Asks for the work to stop.
    pub fn cancel(&self) {
        self.asked.store(true, Relaxed);
    }

    /// Takes the wish back, so that work can begin again.
    pub fn reset(&self) {
        self.asked.store(false, Relaxed);
    }

    /// Whether a thread asked for it; the poll is not asked.
    pub fn is_asked(&self) -> bool {
        self.asked.load(Relaxed)
    }

    /// Whether a thread asked for it, or the poll says so.
    pub fn is_cancelled(&self) -> bool {
        self.is_asked() || self.poll.as_ref().is_some_and(|poll| poll())
    }

    /// Goes on unless it was asked to stop.
    ///
    /// # Errors
    /// [`Error::Cancelled`].
    pub fn check(&self) -> Result<()> {
        if self.is_cancelled() { Err(Error::Cancelled) } else { Ok(()) }
    }
}

impl fmt::Debug for Cancel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cancel").field("asked", &self.asked).field("polls", &self.poll.is_some()).finish()
    }
}
