//! Threads, started only where there is memory for them.

use std::io;
use std::thread::{Builder, JoinHandle};

/// The stack of a thread: what Rust takes where nothing else is said.
const STACK: usize = 2 << 20;

/// What stays free beside it, for what a system's library takes as a thread begins: where that is refused, the library ends
/// the process and no allocator of ours is asked.
#[cfg(unix)]
const MARGIN: usize = 4 << 20;

/// Starts a thread that does `work`.
///
/// # Errors
/// If the system starts no more threads, or leaves too little memory for one.
pub fn start_thread<T: Send + 'static>(
    name: impl Into<String>,
    work: impl FnOnce() -> T + Send + 'static,
) -> io::Result<JoinHandle<T>> {
    #[cfg(unix)]
    find_room(STACK + MARGIN)?;
    Builder::new().name(name.into()).stack_size(STACK).spawn(work)
}

/// Fails if the process may not map so many bytes more.
#[cfg(unix)]
fn find_room(bytes: usize) -> io::Result<()> {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANON | libc::MAP_NORESERVE;
    // SAFETY: a new mapping, which nothing reads or writes, at an address that the system chooses.
    let room = unsafe { libc::mmap(std::ptr::null_mut(), bytes, libc::PROT_NONE, flags, -1, 0) };
    if room == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: exactly the mapping made above.
    unsafe { libc::munmap(room, bytes) };
    Ok(())
}
