//! Reusable working memory, so that the steady state allocates nothing.

// Without vector tiers nothing uses this.
#![cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]

use super::fork::Generation;
use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A stack of buffers; as many exist as were ever in use at once.
pub(crate) struct Scratch {
    buffers: Mutex<Vec<Vec<f32>>>,
    /// In a forked child buffers are new ones: another thread of the parent may have held the lock.
    made_in: Generation,
}

/// `len` values of unspecified content, given back on drop.
pub(crate) struct Buffer<'a> {
    owner: &'a Scratch,
    values: Vec<f32>,
    len: usize,
}

impl Scratch {
    pub(crate) fn new() -> Self {
        Self { buffers: Mutex::default(), made_in: Generation::now() }
    }

    pub(crate) fn take(&self, len: usize) -> Buffer<'_> {
        let mut values = self.lock().and_then(|mut buffers| buffers.pop()).unwrap_or_default();
        if values.len() < len {
            values.resize(len, 0.0);
        }
        Buffer { owner: self, values, len }
    }

    fn lock(&self) -> Option<MutexGuard<'_, Vec<Vec<f32>>>> {
        if self.made_in.is_past() { None } else { Some(self.buffers.lock().unwrap_or_else(PoisonError::into_inner)) }
    }

    /// `bytes` bytes from an address that is a multiple of 64 on.
    pub(crate) fn take_aligned(&self, bytes: usize) -> AlignedBuffer<'_> {
        AlignedBuffer { buffer: self.take((bytes + 64).div_ceil(size_of::<f32>())), bytes }
    }
}

/// Bytes of unspecified content, aligned to a cache line.
pub(crate) struct AlignedBuffer<'a> {
    buffer: Buffer<'a>,
    bytes: usize,
}

impl AlignedBuffer<'_> {
    /// Bytes before the aligned address.
    fn skip(&self) -> usize {
        self.buffer.as_ptr().align_offset(64) * size_of::<f32>()
    }
}

impl Deref for AlignedBuffer<'_> {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: any bytes are valid u8, and the bytes are those of the buffer.
        let all = unsafe { std::slice::from_raw_parts(self.buffer.as_ptr().cast::<u8>(), 4 * self.buffer.len) };
        &all[self.skip()..][..self.bytes]
    }
}

impl DerefMut for AlignedBuffer<'_> {
    fn deref_mut(&mut self) -> &mut [u8] {
        let (skip, len) = (self.skip(), 4 * self.buffer.len);
        // SAFETY: any bytes are valid u8 and f32, the bytes are those of the buffer, and it is borrowed mutably.
        let all = unsafe { std::slice::from_raw_parts_mut(self.buffer.as_mut_ptr().cast::<u8>(), len) };
        &mut all[skip..][..self.bytes]
    }
}

impl Drop for Buffer<'_> {
    fn drop(&mut self) {
        let values = std::mem::take(&mut self.values);
        if let Some(mut buffers) = self.owner.lock() {
            buffers.push(values);
        }
    }
}

impl Deref for Buffer<'_> {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        &self.values[..self.len]
    }
}

impl DerefMut for Buffer<'_> {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.values[..self.len]
    }
}

#[cfg(unix)]
#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_held_when_the_process_forks_does_not_hold_up_the_child() {
        let scratch = Scratch::new();
        drop(scratch.take(8));
        let held = scratch.buffers.lock().unwrap();
        // SAFETY: the child only takes memory and ends, killed by an alarm if it hangs.
        let status = unsafe {
            let pid = libc::fork();
            assert!(pid >= 0, "fork");
            if pid == 0 {
                libc::alarm(20);
                drop(scratch.take(8));
                libc::_exit(0);
            }
            let mut status = 0;
            libc::waitpid(pid, &raw mut status, 0);
            status
        };
        drop(held);
        assert!(libc::WIFEXITED(status), "the child hung: {status}");
    }
}
