//! The key and value cache of one sequence.

use sparrow_kernels::{Compute, DType, KvMut, KvView};

use super::Row;
use super::spec::ModelSpec;

/// Keys (after RoPE) and values of one sequence, for every layer `[kv_heads, capacity, head_dim]`.
#[derive(Debug)]
pub struct KvCache {
    dtype: DType,
    kv_heads: usize,
    head_dim: usize,
    capacity: usize,
    /// What is cached.
    tokens: Vec<u32>,
    /// Tokens of the sequence that the keys are rotated for: what some kinds of RoPE depend on.
    rotated_for: usize,
    /// Zeroed on allocation, so memory is taken only as positions are written.
    layers: Vec<(Vec<u8>, Vec<u8>)>,
}

impl KvCache {
    /// An empty cache with room for `capacity` tokens.
    pub fn new(spec: &ModelSpec, dtype: DType, capacity: usize) -> Self {
        let bytes = spec.num_kv_heads * capacity * dtype.row_bytes(spec.head_dim);
        let layers = (0..spec.num_layers).map(|_| (vec![0; bytes], vec![0; bytes])).collect();
        KvCache {
            dtype,
            kv_heads: spec.num_kv_heads,
            head_dim: spec.head_dim,
            capacity,
            tokens: Vec::with_capacity(capacity),
            rotated_for: 0,
            layers,
        }
    }

    /// Tokens cached.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether nothing is cached.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// Tokens there is room for.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Bytes of all keys and values there is room for.
    pub fn bytes(&self) -> usize {
        self.layers.iter().map(|(keys, values)| keys.len() + values.len()).sum()
    }

    /// Keeps the first `len` tokens: 0 starts over.
    ///
    /// # Panics
    /// If fewer are cached.
    pub fn truncate(&mut self, len: usize) {
        assert!(len <= self.len(), "cannot truncate {} tokens to {len}", self.len());
        self.tokens.truncate(len);
    }

    /// The tokens cached.
    pub(crate) fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Tokens of the sequence that the cached keys are rotated for.
    pub(crate) fn rotated_for(&self) -> usize {
        self.rotated_for
    }

    /// Counts a token as cached: called once every layer has [`put`](Self::put) it.
    pub(crate) fn advance(&mut self, row: &Row) {
        self.tokens.push(row.token);
        self.rotated_for = row.sequence_len;
        debug_assert!(self.len() <= self.capacity);
    }

    /// Stores keys and values (`[rows, kv_heads, head_dim]` each) of the tokens at `first` and the positions after it.
    pub(crate) fn put(&mut self, compute: &Compute, layer: usize, first: usize, keys: &[f32], values: &[f32]) {
        let (key_cache, value_cache) = &mut self.layers[layer];
        let cache = KvMut { dtype: self.dtype, keys: key_cache, values: value_cache, capacity: self.capacity };
        compute.store_kv(cache, self.kv_heads, self.head_dim, first, keys, values);
    }

    /// What a token at `position` sees: the last `window` positions up to its own.
    pub(crate) fn view(&self, layer: usize, position: usize, window: Option<usize>) -> KvView<'_> {
        let (keys, values) = &self.layers[layer];
        let len = position + 1;
        let start = window.map_or(0, |w| len.saturating_sub(w));
        KvView { dtype: self.dtype, keys, values, capacity: self.capacity, start, len }
    }
}
