//! Work without the interpreter's lock: panics become exceptions, signals are heard, and callbacks cannot call what calls them.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use pyo3::prelude::*;
use sparrow::session::Cancel;
use sparrow::{Cpu, Error};

use crate::errors::{exception, named};

/// Signals are looked for so often: another Python thread that computes holds the interpreter's lock for 5 ms at a time, and
/// nothing may wait for it at every layer.
const INTERVAL: Duration = Duration::from_millis(10);

thread_local! {
    static LOOKED: Cell<Option<Instant>> = const { Cell::new(None) };
    /// What a signal's handler raised while work went on.
    static RAISED: RefCell<Option<PyErr>> = const { RefCell::new(None) };
    /// The objects whose callbacks this thread is running.
    static CALLING: RefCell<Vec<usize>> = const { RefCell::new(Vec::new()) };
}

/// Runs `work` without the interpreter's lock. A panic is an `InternalError`, and what [`stop`] raised is itself.
pub fn detached<T: Send>(py: Python<'_>, work: impl FnOnce() -> PyResult<T> + Send) -> PyResult<T> {
    RAISED.set(None);
    let result = py.detach(|| catch_unwind(AssertUnwindSafe(work)));
    let result = result.unwrap_or_else(|panic| Err(panicked(panic)));
    // What a handler raised explains why work was cancelled.
    match (result, RAISED.take()) {
        (Err(_), Some(raised)) => Err(raised),
        (result, _) => result,
    }
}

/// Ends work that cannot return an error, with an exception: its files are removed as the stack unwinds.
pub fn stop(error: PyErr) -> ! {
    resume_unwind(Box::new(error))
}

fn panicked(panic: Box<dyn Any + Send>) -> PyErr {
    match panic.downcast::<PyErr>() {
        Ok(stopped) => *stopped,
        Err(panic) => {
            let text = panic.downcast_ref::<&str>().copied().or(panic.downcast_ref::<String>().map(String::as_str));
            let text = text.unwrap_or("no message");
            named("InternalError", format!("an error in Sparrow itself, please report it: {text}"))
        }
    }
}

/// What stops a session: the wish of another thread, or a signal.
pub fn cancel() -> Cancel {
    Cancel::with_poll(|| match signals() {
        Ok(()) => false,
        Err(raised) => {
            RAISED.set(Some(raised));
            true
        }
    })
}

/// Runs the handlers of signals that came, on the thread that has them, the main one.
pub fn signals() -> PyResult<()> {
    let now = Instant::now();
    let due = LOOKED.get().is_none_or(|looked| now - looked >= INTERVAL);
    if !due || !is_main_thread() {
        return Ok(());
    }
    LOOKED.set(Some(now));
    Python::attach(|py| py.check_signals())
}

fn is_main_thread() -> bool {
    // SAFETY: both only ask the system for a number.
    #[cfg(target_os = "linux")]
    unsafe {
        libc::gettid() == libc::getpid()
    }
    #[cfg(not(target_os = "linux"))]
    true
}

/// A lock that a panic does not poison: what is behind it is told of failed steps by itself.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Refuses to work in a child of the process that has the threads.
pub fn check_process(cpu: &Cpu) -> PyResult<()> {
    if cpu.compute.is_forked() { Err(exception(Error::Forked)) } else { Ok(()) }
}

/// Refuses a call of `object` from inside of its own callback.
pub fn check_caller<T>(object: &T) -> PyResult<()> {
    let address = std::ptr::from_ref(object).addr();
    match CALLING.with_borrow(|calling| calling.contains(&address)) {
        true => Err(named("ReentrantCallError", "called from inside of its own callback: call it after the callback")),
        false => Ok(()),
    }
}

/// Runs a callback of `object`, which cannot call it.
pub fn call_back<T, R>(object: &T, callback: impl FnOnce(Python<'_>) -> PyResult<R>) -> PyResult<R> {
    CALLING.with_borrow_mut(|calling| calling.push(std::ptr::from_ref(object).addr()));
    let result = Python::attach(callback);
    CALLING.with_borrow_mut(Vec::pop);
    result
}

/// A report of progress as a call of `callback(stage, done, total)`; its exceptions, and those of signals, end the work.
pub fn reporter(callback: Option<&Py<PyAny>>) -> impl FnMut(&'static str, u64, u64) {
    move |stage, done, total| {
        let told = signals().and_then(|()| match callback {
            Some(callback) => Python::attach(|py| callback.call1(py, (stage, done, total)).map(drop)),
            None => Ok(()),
        });
        if let Err(error) = told {
            stop(error);
        }
    }
}
