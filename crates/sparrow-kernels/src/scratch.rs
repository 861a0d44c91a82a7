//! Reusable working memory, so that the steady state allocates nothing.

use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, PoisonError};

/// A stack of buffers; as many exist as were ever in use at once.
#[derive(Default)]
pub(crate) struct Scratch {
    buffers: Mutex<Vec<Vec<f32>>>,
}

/// `len` values of unspecified content, given back on drop.
pub(crate) struct Buffer<'a> {
    owner: &'a Scratch,
    values: Vec<f32>,
    len: usize,
}

impl Scratch {
    pub(crate) fn take(&self, len: usize) -> Buffer<'_> {
        let mut values = self.buffers.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default();
        if values.len() < len {
            values.resize(len, 0.0);
        }
        Buffer { owner: self, values, len }
    }
}

impl Drop for Buffer<'_> {
    fn drop(&mut self) {
        let values = std::mem::take(&mut self.values);
        self.owner.buffers.lock().unwrap_or_else(PoisonError::into_inner).push(values);
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
