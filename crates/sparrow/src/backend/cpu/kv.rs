//! The key and value cache of one sequence.

use std::sync::Arc;

use sparrow_kernels::{Compute, DType, DenseKv, KvMut, KvRows, KvView, SparseKv, SparseKvShape};

use crate::backend::KvOptions;
use crate::error::Result;
use crate::spec::ModelSpec;
use crate::tensor::room;

/// Keys (after RoPE) and values of one sequence.
#[derive(Debug, Clone)]
pub struct KvCache {
    dtype: DType,
    kv_heads: usize,
    head_dim: usize,
    capacity: usize,
    /// Positions that were stored and not given up: at least as many as the sequence has tokens.
    len: usize,
    layers: Vec<Layer>,
}

/// Keys and values of one layer.
#[derive(Debug, Clone)]
enum Layer {
    /// `[kv_heads, capacity, head_dim]` each, zeroed on allocation, so memory is taken only as positions are written.
    Dense { keys: Vec<u8>, values: Vec<u8> },
    /// With what keys were divided by.
    Sparse(SparseKv, Option<Arc<[f32]>>),
}

/// What the cache of a layer is to be: sparse, or bytes of keys, and as many of values.
enum Plan {
    Dense(usize),
    Sparse(SparseKvShape),
}

impl Plan {
    fn new(spec: &ModelSpec, dtype: DType, options: &KvOptions, capacity: usize) -> Self {
        let Some(sparsity) = options.sparsity else {
            return Plan::Dense(spec.num_kv_heads * capacity * dtype.row_bytes(spec.head_dim));
        };
        Plan::Sparse(SparseKvShape {
            dtype,
            kv_heads: spec.num_kv_heads,
            head_dim: spec.head_dim,
            capacity,
            key_sparsity: sparsity.keys,
            value_sparsity: sparsity.values,
            sinks: options.sinks,
            tail: options.dense_tail,
        })
    }

    fn bytes(&self) -> usize {
        match self {
            Plan::Dense(bytes) => 2 * bytes,
            Plan::Sparse(shape) => shape.bytes(),
        }
    }
}

impl Layer {
    fn new(plan: &Plan) -> Self {
        match *plan {
            Plan::Dense(bytes) => Layer::Dense { keys: vec![0; bytes], values: vec![0; bytes] },
            Plan::Sparse(shape) => Layer::Sparse(SparseKv::new(shape), None),
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Layer::Dense { keys, values } => keys.len() + values.len(),
            Layer::Sparse(cache, _) => cache.bytes(),
        }
    }
}

/// Asks for the memory of a cache whose layers take so many bytes each.
fn ask_for(capacity: usize, bytes: usize, layers: usize) -> Result<()> {
    let needed = (bytes as u64).saturating_mul(layers as u64);
    let mend = "allow fewer tokens (-n, --max-new-tokens), or store them smaller (--kv-dtype int8)";
    room::ask(|| format!("the keys and values of {capacity} tokens"), needed, mend)
}

impl KvCache {
    /// An empty cache with room for `capacity` tokens of type `dtype`, whatever `options.dtype` says.
    ///
    /// # Errors
    /// If there is no memory for it.
    pub fn new(spec: &ModelSpec, dtype: DType, options: &KvOptions, capacity: usize) -> Result<Self> {
        let plan = Plan::new(spec, dtype, options, capacity);
        ask_for(capacity, plan.bytes(), spec.num_layers)?;
        Ok(KvCache {
            dtype,
            kv_heads: spec.num_kv_heads,
            head_dim: spec.head_dim,
            capacity,
            len: 0,
            layers: (0..spec.num_layers).map(|_| Layer::new(&plan)).collect(),
        })
    }

    /// Bytes of all keys and values there is room for.
    pub fn bytes(&self) -> usize {
        self.layers.iter().map(Layer::bytes).sum()
    }

    /// Keeps the first `len` tokens: 0 starts over. Tokens that a sparse cache has pruned stay so; see [`SparseKv::truncate`].
    pub fn truncate(&mut self, compute: &Compute, len: usize) {
        self.len = self.len.min(len);
        for layer in &mut self.layers {
            if let Layer::Sparse(cache, _) = layer {
                cache.truncate(compute, len);
            }
        }
    }

    /// Takes the first `len` tokens of `from`, a cache of the same kind, in place of its own.
    ///
    /// # Panics
    /// If there is no room for them.
    pub fn copy_prefix(&mut self, compute: &Compute, from: &KvCache, len: usize) {
        assert!(len <= self.capacity, "copy_prefix: {len} tokens, room for {}", self.capacity);
        self.len = len;
        for (to, layer) in self.layers.iter_mut().zip(&from.layers) {
            match (to, layer) {
                (Layer::Dense { keys, values }, Layer::Dense { keys: from_keys, values: from_values }) => {
                    for (to, bytes) in [(keys, from_keys), (values, from_values)] {
                        copy_rows((bytes, from.capacity), (to, self.capacity), self.kv_heads, len);
                    }
                }
                (Layer::Sparse(to, to_sizes), Layer::Sparse(cache, sizes)) => {
                    to_sizes.clone_from(sizes);
                    to.copy_prefix(compute, cache, len);
                }
                _ => unreachable!("the caches of a session are of one kind"),
            }
        }
    }

    /// Makes room for `capacity` tokens, if there is less.
    ///
    /// # Errors
    /// If there is no memory for it.
    pub fn grow(&mut self, capacity: usize) -> Result<()> {
        if capacity <= self.capacity {
            return Ok(());
        }
        // A layer is copied at a time, so that the old and the new are not both there at once.
        ask_for(capacity, self.bytes() / self.capacity.max(1) * (capacity - self.capacity), 1)?;
        for layer in &mut self.layers {
            match layer {
                Layer::Dense { keys, values } => {
                    for bytes in [keys, values] {
                        let mut grown = vec![0; bytes.len() / self.capacity.max(1) * capacity];
                        copy_rows((bytes, self.capacity), (&mut grown, capacity), self.kv_heads, self.len);
                        *bytes = grown;
                    }
                }
                Layer::Sparse(cache, _) => cache.reserve(capacity),
            }
        }
        self.capacity = capacity;
        Ok(())
    }

    /// Prunes what is older than the dense tail of a sparse cache. Whether there was anything to prune.
    pub fn prune(&mut self, compute: &Compute) -> bool {
        let mut pruned = false;
        for layer in &mut self.layers {
            if let Layer::Sparse(cache, sizes) = layer {
                pruned |= cache.pack(compute, sizes.as_deref());
            }
        }
        pruned
    }

    /// Whether keys are to be divided by their [sizes](crate::weights::LayerWeights::key_sizes): where one scale is for all channels.
    pub fn wants_even_keys(&self) -> bool {
        self.dtype == DType::I8
    }

    /// Stores keys, divided by `sizes` if there are any, and values (`[rows, kv_heads, head_dim]` each) of the tokens at `first` and
    /// the positions after it.
    pub fn put(
        &mut self,
        compute: &Compute,
        layer: usize,
        first: usize,
        [keys, values]: [&[f32]; 2],
        sizes: Option<&Arc<[f32]>>,
    ) {
        self.len = self.len.max(first + keys.len() / (self.kv_heads * self.head_dim));
        match &mut self.layers[layer] {
            Layer::Dense { keys: key_cache, values: value_cache } => {
                let cache = KvMut { dtype: self.dtype, keys: key_cache, values: value_cache, capacity: self.capacity };
                compute.store_kv(cache, self.kv_heads, self.head_dim, first, keys, values);
            }
            Layer::Sparse(cache, of_keys) => {
                *of_keys = sizes.cloned();
                cache.store(compute, first, keys, values);
            }
        }
    }

    /// What a token at `position` sees: the last `window` positions up to its own.
    pub fn view(&self, layer: usize, position: usize, window: Option<usize>) -> KvView<'_> {
        let rows = match &self.layers[layer] {
            Layer::Dense { keys, values } => {
                KvRows::Dense(DenseKv { dtype: self.dtype, keys, values, capacity: self.capacity })
            }
            Layer::Sparse(cache, _) => KvRows::Sparse(cache.rows()),
        };
        let len = position + 1;
        let start = window.map_or(0, |w| len.saturating_sub(w));
        KvView { rows, start, len }
    }
}

/// Copies the first `len` positions of each head, `[heads, capacity, bytes of a position]`, between caches of two capacities.
fn copy_rows(from: (&[u8], usize), to: (&mut [u8], usize), heads: usize, len: usize) {
    let ((from, from_capacity), (to, to_capacity)) = (from, to);
    let (stride, to_stride) = (from.len() / heads, to.len() / heads);
    let used = stride / from_capacity.max(1) * len;
    debug_assert_eq!(stride * to_capacity, to_stride * from_capacity, "positions of one size");
    for (from, to) in from.chunks_exact(stride.max(1)).zip(to.chunks_exact_mut(to_stride.max(1))) {
        to[..used].copy_from_slice(&from[..used]);
    }
}
