//! What becomes of a program that the system gives no memory.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// The system's allocator for commands: where memory runs out it says so and exits with status 1, instead of aborting.
///
/// What is large should be asked for before; this is for what remains.
#[derive(Debug)]
pub struct ExitWhenFull;

impl ExitWhenFull {
    fn check(&self, pointer: *mut u8, bytes: usize) -> *mut u8 {
        if pointer.is_null() {
            end(bytes);
        }
        pointer
    }
}

/// Ends the process; returns only where ending needs memory itself.
#[cold]
fn end(bytes: usize) {
    static ENDING: AtomicBool = AtomicBool::new(false);
    thread_local! {
        static HERE: Cell<bool> = const { Cell::new(false) };
    }
    if HERE.replace(true) {
        return;
    }
    if ENDING.swap(true, Relaxed) {
        // Another thread is at it.
        loop {
            std::thread::park();
        }
    }
    // Nothing here allocates or waits for a lock: who holds one may be parked above.
    let (mut text, mut length) = ([0; 128], 0);
    let mut rest = &mut text[..];
    let room = rest.len();
    if writeln!(rest, "sparrow: out of memory: {bytes} more bytes were refused").is_ok() {
        length = room - rest.len();
    }
    exit(&text[..length])
}

#[cfg(unix)]
fn exit(message: &[u8]) -> ! {
    // SAFETY: the pointer and the length are those of a slice; `_exit` ends the process and runs nothing of it.
    unsafe {
        libc::write(2, message.as_ptr().cast(), message.len());
        libc::_exit(1)
    }
}

#[cfg(not(unix))]
fn exit(message: &[u8]) -> ! {
    let _ = std::io::stderr().write_all(message);
    std::process::exit(1)
}

// SAFETY: every call is passed on to the system's allocator unchanged, and so is what it returns.
unsafe impl GlobalAlloc for ExitWhenFull {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's contract is the system allocator's.
        self.check(unsafe { System.alloc(layout) }, layout.size())
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as in `alloc`.
        self.check(unsafe { System.alloc_zeroed(layout) }, layout.size())
    }
    unsafe fn realloc(&self, old: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: as in `alloc`.
        self.check(unsafe { System.realloc(old, layout, size) }, size)
    }
    unsafe fn dealloc(&self, old: *mut u8, layout: Layout) {
        // SAFETY: as in `alloc`.
        unsafe { System.dealloc(old, layout) }
    }
}
