//! The key and value cache of one sequence.

use sparrow_kernels::{DType, KvView, encode};

use super::spec::ModelSpec;

/// Keys (after RoPE) and values of one sequence, for every layer `[kv_heads, capacity, head_dim]`.
#[derive(Debug)]
pub struct KvCache {
    dtype: DType,
    kv_heads: usize,
    head_dim: usize,
    capacity: usize,
    len: usize,
    /// Zeroed on allocation, so memory is taken only as positions are written.
    layers: Vec<(Vec<u8>, Vec<u8>)>,
}

impl KvCache {
    /// An empty cache with room for `capacity` tokens.
    pub fn new(spec: &ModelSpec, dtype: DType, capacity: usize) -> Self {
        let bytes = spec.num_kv_heads * capacity * dtype.row_bytes(spec.head_dim);
        let layers = (0..spec.num_layers).map(|_| (vec![0; bytes], vec![0; bytes])).collect();
        KvCache { dtype, kv_heads: spec.num_kv_heads, head_dim: spec.head_dim, capacity, len: 0, layers }
    }

    /// Tokens cached.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing is cached.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Tokens there is room for.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Keeps the first `len` tokens: 0 starts over.
    ///
    /// # Panics
    /// If fewer are cached.
    pub fn truncate(&mut self, len: usize) {
        assert!(len <= self.len, "cannot truncate {} tokens to {len}", self.len);
        self.len = len;
    }

    /// Counts `tokens` more as cached: called once per step, after every layer has [`put`](Self::put) them.
    pub(crate) fn advance(&mut self, tokens: usize) {
        self.len += tokens;
        debug_assert!(self.len <= self.capacity);
    }

    /// Stores key and value (`[kv_heads, head_dim]` each) of the token at `position`.
    pub(crate) fn put(&mut self, layer: usize, position: usize, key: &[f32], value: &[f32]) {
        let row = self.dtype.row_bytes(self.head_dim);
        let (keys, values) = &mut self.layers[layer];
        for head in 0..self.kv_heads {
            let at = (head * self.capacity + position) * row;
            let from = head * self.head_dim..(head + 1) * self.head_dim;
            encode(self.dtype, &key[from.clone()], &mut keys[at..at + row]);
            encode(self.dtype, &value[from], &mut values[at..at + row]);
        }
    }

    /// What a token at `position` sees: the last `window` positions up to its own.
    pub(crate) fn view(&self, layer: usize, position: usize, window: Option<usize>) -> KvView<'_> {
        let (keys, values) = &self.layers[layer];
        let len = position + 1;
        let start = window.map_or(0, |w| len.saturating_sub(w));
        KvView { dtype: self.dtype, keys, values, capacity: self.capacity, start, len }
    }
}
