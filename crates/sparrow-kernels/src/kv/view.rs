//! What a row sees of a cache.

use super::dense::DenseKv;
use super::sparse::SparseKv;
use super::sparse_rows::SparseRows;
use crate::dtype::DType;

/// The cached keys and values that one row may see.
#[derive(Clone, Copy)]
pub struct KvView<'a> {
    /// The cache.
    pub rows: KvRows<'a>,
    /// The first visible position (above 0 for a sliding window).
    pub start: usize,
    /// The end of the visible positions: `start..len`.
    pub len: usize,
}

/// Keys and values of one sequence.
#[derive(Clone, Copy)]
pub enum KvRows<'a> {
    /// All as they were stored.
    Dense(DenseKv<'a>),
    /// Older ones pruned and packed.
    Sparse(SparseRows<'a>),
}

impl SparseKv {
    /// What a token sees that sees positions `start..len`.
    ///
    /// # Panics
    /// In [`Compute::attention`](crate::Compute::attention), if fewer are stored.
    pub fn view(&self, start: usize, len: usize) -> KvView<'_> {
        KvView { rows: KvRows::Sparse(self.rows()), start, len }
    }
}

impl KvView<'_> {
    pub(crate) fn dtype(&self) -> DType {
        match self.rows {
            KvRows::Dense(cache) => cache.dtype,
            KvRows::Sparse(cache) => cache.dtype,
        }
    }

    /// Positions there is room for.
    pub(crate) fn capacity(&self) -> usize {
        match self.rows {
            KvRows::Dense(cache) => cache.capacity,
            KvRows::Sparse(cache) => cache.capacity,
        }
    }

    /// Whether both look into the same cache.
    pub(crate) fn shares_cache(&self, other: &Self) -> bool {
        match (&self.rows, &other.rows) {
            (KvRows::Dense(a), KvRows::Dense(b)) => {
                a.dtype == b.dtype
                    && a.capacity == b.capacity
                    && std::ptr::eq(a.keys, b.keys)
                    && std::ptr::eq(a.values, b.values)
            }
            (KvRows::Sparse(a), KvRows::Sparse(b)) => a.is_same(b),
            _ => false,
        }
    }
}
