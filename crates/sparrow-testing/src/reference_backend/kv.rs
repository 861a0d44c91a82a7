//! Keys and values of one sequence, pruned in place where the cache is a sparse one.

use sparrow::KvOptions;
use sparrow::internals::spec::ModelSpec;

use super::rows::Rows;
use crate::reference::Pruning;

/// Keys (after rotation) and values of one sequence.
#[derive(Clone)]
pub struct Cache {
    head_dim: usize,
    kv_size: usize,
    capacity: usize,
    /// What a sparse cache drops.
    pruning: Option<Pruning>,
    layers: Vec<Layer>,
}

/// Of one layer: a row, `[kv_heads · head_dim]`, for each position.
#[derive(Clone, Default)]
pub struct Layer {
    pub keys: Rows,
    pub values: Rows,
    /// Tokens after the sinks that are pruned.
    pruned: usize,
}

impl Cache {
    /// An empty cache. Elements are f64 whatever their type is to be.
    pub fn new(spec: &ModelSpec, options: &KvOptions, capacity: usize) -> Self {
        let pruning = options.sparsity.map(|dropped| Pruning {
            sparsity: [f64::from(dropped.keys), f64::from(dropped.values)],
            sinks: options.sinks,
            tail: options.dense_tail,
        });
        let layers = vec![Layer::default(); spec.num_layers];
        Cache { head_dim: spec.head_dim, kv_size: spec.kv_size(), capacity, pruning, layers }
    }

    /// Keys and values of a layer.
    pub fn layer(&self, index: usize) -> &Layer {
        &self.layers[index]
    }

    /// Stores a position's key and value, `[kv_heads · head_dim]` each; what was stored from there on is forgotten.
    pub fn put(&mut self, layer: usize, position: usize, key: Vec<f64>, value: Vec<f64>) {
        let Layer { keys, values, pruned } = &mut self.layers[layer];
        let sinks = self.pruning.map_or(0, |pruning| pruning.sinks);
        assert!(position <= keys.len() && position < self.capacity, "position {position} of {}", keys.len());
        assert!(*pruned == 0 || position >= sinks + *pruned, "position {position} is pruned");
        keys.truncate(position);
        values.truncate(position);
        keys.push(key);
        values.push(value);
    }

    /// Makes room for `capacity` tokens, if there is less.
    pub fn grow(&mut self, capacity: usize) {
        self.capacity = self.capacity.max(capacity);
    }

    /// Keeps the first `len` tokens. Those that were pruned stay so; a block that is cut is pruned again once it is whole.
    pub fn truncate(&mut self, len: usize) {
        let whole = self.pruning.map_or(0, |pruning| Pruning { tail: 0, ..pruning }.packed(len).len());
        for layer in &mut self.layers {
            layer.keys.truncate(len);
            layer.values.truncate(len);
            layer.pruned = layer.pruned.min(whole);
        }
    }

    /// Takes the first `len` tokens of `from` in place of its own.
    pub fn copy(&mut self, from: &Cache, len: usize) {
        assert!(len <= self.capacity, "{len} tokens, room for {}", self.capacity);
        *self = Cache { capacity: self.capacity, ..from.clone() };
        self.truncate(len);
    }

    /// Prunes every block of a sparse cache that is older than the tail. Whether there was one.
    pub fn prune(&mut self) -> bool {
        let Some(pruning) = self.pruning else { return false };
        let mut found = false;
        for Layer { keys, values, pruned } in &mut self.layers {
            // A block of its own has neither sinks nor tail.
            let alone = Pruning { sinks: 0, tail: 0, ..pruning };
            for block in pruning.packed(keys.len()).skip(*pruned).step_by(Pruning::BLOCK) {
                for (rows, sparsity) in [(&mut *keys, pruning.sparsity[0]), (&mut *values, pruning.sparsity[1])] {
                    let rows = &mut rows[block..block + Pruning::BLOCK];
                    let kept = alone.prune(rows, self.head_dim, sparsity);
                    rows.clone_from_slice(&kept);
                }
                *pruned += Pruning::BLOCK;
                found = true;
            }
        }
        found
    }

    /// Bytes of all keys and values there is room for.
    pub fn bytes(&self) -> usize {
        2 * self.layers.len() * self.capacity * self.kv_size * size_of::<f64>()
    }
}
