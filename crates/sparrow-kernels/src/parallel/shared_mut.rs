//! One output slice written by several tasks.

use std::marker::PhantomData;
use std::ops::Range;

/// A mutable slice whose disjoint parts are handed to different tasks.
pub(crate) struct SharedMut<'a, T> {
    start: *mut T,
    len: usize,
    slice: PhantomData<&'a mut [T]>,
}

impl<T> Clone for SharedMut<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for SharedMut<'_, T> {}

// SAFETY: it stands for `&mut [T]`, whose parts may be used on other threads if T may.
unsafe impl<T: Send> Send for SharedMut<'_, T> {}
// SAFETY: shared use only hands out parts, and `part` makes its caller keep them disjoint.
unsafe impl<T: Send> Sync for SharedMut<'_, T> {}

impl<'a, T> SharedMut<'a, T> {
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), slice: PhantomData }
    }

    /// The part `range`.
    ///
    /// # Safety
    /// No two parts that are alive at once may overlap.
    #[allow(clippy::mut_from_ref)]
    pub(crate) unsafe fn part(&self, range: Range<usize>) -> &'a mut [T] {
        assert!(range.start <= range.end && range.end <= self.len);
        // SAFETY: within the slice by the assertion, and disjoint from other live parts by the contract.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }

    /// The address of element `index`, for kernels that write strided parts.
    pub(crate) fn pointer(&self, index: usize) -> *mut T {
        assert!(index <= self.len);
        // SAFETY: at most one past the end, by the assertion.
        unsafe { self.start.add(index) }
    }

    /// The slice behind a pointer.
    ///
    /// # Safety
    /// It must be valid for `'a`, and nobody may use it in another way while the result is alive.
    pub(crate) unsafe fn from_raw(slice: *mut [T]) -> Self {
        Self { start: slice.cast(), len: slice.len(), slice: PhantomData }
    }
}
