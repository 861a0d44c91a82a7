//! The key and value cache of one sequence.

use sparrow_kernels::{Compute, DType, DenseKv, KvMut, KvRows, KvView, SparseKv, SparseKvShape};

use super::spec::ModelSpec;
use super::{KvOptions, Row};

/// Keys (after RoPE) and values of one sequence.
#[derive(Debug, Clone)]
pub struct KvCache {
    dtype: DType,
    kv_heads: usize,
    head_dim: usize,
    capacity: usize,
    /// What is cached.
    tokens: Vec<u32>,
    /// Tokens of the sequence that the keys are rotated for: what some kinds of RoPE depend on.
    rotated_for: usize,
    layers: Vec<Layer>,
}

/// Keys and values of one layer.
#[derive(Debug, Clone)]
enum Layer {
    /// `[kv_heads, capacity, head_dim]` each, zeroed on allocation, so memory is taken only as positions are written.
    Dense {
        keys: Vec<u8>,
        values: Vec<u8>,
    },
    Sparse(SparseKv),
}

impl Layer {
    fn new(spec: &ModelSpec, dtype: DType, options: &KvOptions, capacity: usize) -> Self {
        let Some(sparsity) = options.sparsity else {
            let bytes = spec.num_kv_heads * capacity * dtype.row_bytes(spec.head_dim);
            return Layer::Dense { keys: vec![0; bytes], values: vec![0; bytes] };
        };
        Layer::Sparse(SparseKv::new(SparseKvShape {
            dtype,
            kv_heads: spec.num_kv_heads,
            head_dim: spec.head_dim,
            capacity,
            key_sparsity: sparsity.keys,
            value_sparsity: sparsity.values,
            sinks: options.sinks,
            tail: options.dense_tail,
        }))
    }

    fn bytes(&self) -> usize {
        match self {
            Layer::Dense { keys, values } => keys.len() + values.len(),
            Layer::Sparse(cache) => cache.bytes(),
        }
    }
}

impl KvCache {
    /// An empty cache with room for `capacity` tokens of type `dtype`, whatever `options.dtype` says.
    pub fn new(spec: &ModelSpec, dtype: DType, options: &KvOptions, capacity: usize) -> Self {
        KvCache {
            dtype,
            kv_heads: spec.num_kv_heads,
            head_dim: spec.head_dim,
            capacity,
            tokens: Vec::with_capacity(capacity),
            rotated_for: 0,
            layers: (0..spec.num_layers).map(|_| Layer::new(spec, dtype, options, capacity)).collect(),
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
        self.layers.iter().map(Layer::bytes).sum()
    }

    /// Keeps the first `len` tokens: 0 starts over. Tokens that a sparse cache has packed stay pruned; see
    /// [`SparseKv::truncate`].
    ///
    /// # Panics
    /// If fewer are cached.
    pub fn truncate(&mut self, compute: &Compute, len: usize) {
        assert!(len <= self.len(), "cannot truncate {} tokens to {len}", self.len());
        self.tokens.truncate(len);
        for layer in &mut self.layers {
            if let Layer::Sparse(cache) = layer {
                cache.truncate(compute, len);
            }
        }
    }

    /// The tokens cached.
    pub(crate) fn tokens(&self) -> &[u32] {
        &self.tokens
    }

    /// Tokens of the sequence that the cached keys are rotated for.
    pub(crate) fn rotated_for(&self) -> usize {
        self.rotated_for
    }

    /// Packs what is older than the dense tail of a sparse cache, at the start of a step: were it the end, going back over tokens
    /// that were only tried would find older ones packed too early. Whether there was anything to pack.
    pub(crate) fn pack(&mut self, compute: &Compute) -> bool {
        let mut packed = false;
        for layer in &mut self.layers {
            if let Layer::Sparse(cache) = layer {
                packed |= cache.pack(compute);
            }
        }
        packed
    }

    /// Counts a token as cached: called once every layer has [`put`](Self::put) it.
    pub(crate) fn advance(&mut self, row: &Row) {
        self.tokens.push(row.token);
        self.rotated_for = row.sequence_len;
        debug_assert!(self.len() <= self.capacity);
    }

    /// Stores keys and values (`[rows, kv_heads, head_dim]` each) of the tokens at `first` and the positions after it.
    pub(crate) fn put(&mut self, compute: &Compute, layer: usize, first: usize, keys: &[f32], values: &[f32]) {
        match &mut self.layers[layer] {
            Layer::Dense { keys: key_cache, values: value_cache } => {
                let cache = KvMut { dtype: self.dtype, keys: key_cache, values: value_cache, capacity: self.capacity };
                compute.store_kv(cache, self.kv_heads, self.head_dim, first, keys, values);
            }
            Layer::Sparse(cache) => cache.store(compute, first, keys, values),
        }
    }

    /// What a token at `position` sees: the last `window` positions up to its own.
    pub(crate) fn view(&self, layer: usize, position: usize, window: Option<usize>) -> KvView<'_> {
        let rows = match &self.layers[layer] {
            Layer::Dense { keys, values } => {
                KvRows::Dense(DenseKv { dtype: self.dtype, keys, values, capacity: self.capacity })
            }
            Layer::Sparse(cache) => KvRows::Sparse(cache),
        };
        let len = position + 1;
        let start = window.map_or(0, |w| len.saturating_sub(w));
        KvView { rows, start, len }
    }
}
