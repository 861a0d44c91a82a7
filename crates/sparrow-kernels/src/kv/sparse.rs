//! A cache of keys and values that keeps recent tokens as they are and older ones pruned by magnitude (SparAMX, arXiv
//! 2502.12444), packed as bitmap and non-zeros.

use super::block::{BLOCK, BlockLayout, READ_AHEAD};
use crate::dtype::DType;

/// What a [`SparseKv`] is made for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SparseKvShape {
    /// f32, f16, bf16 or int8.
    pub dtype: DType,
    /// Key and value heads; each is pruned by itself.
    pub kv_heads: usize,
    /// Elements of one head.
    pub head_dim: usize,
    /// Tokens there is room for.
    pub capacity: usize,
    /// The fraction of a block's keys that is dropped, in 0..=1.
    pub key_sparsity: f32,
    /// The fraction of a block's values that is dropped, in 0..=1.
    pub value_sparsity: f32,
    /// First tokens that are never packed.
    pub sinks: usize,
    /// Last tokens that are not packed yet.
    pub tail: usize,
}

/// Keys and values of one sequence in one layer. Tokens come in dense; [`pack`](Self::pack) prunes and packs, 64 at a
/// time, those that are older than the tail.
///
/// Of each head's block of 64 tokens the `floor(sparsity · 64 · head_dim)` keys, and values, of smallest magnitude are
/// dropped, so a block's size is known beforehand: memory for all blocks is taken at once, zeroed, and becomes resident
/// as blocks are written. Neither storing single tokens nor packing allocates.
#[derive(Debug, Clone)]
pub struct SparseKv {
    pub(crate) shape: SparseKvShape,
    pub(crate) len: usize,
    /// Tokens in blocks, a multiple of `BLOCK`: those after the sinks.
    pub(crate) packed: usize,
    /// Tokens that the dense part has room for: sinks, then what is not packed.
    pub(crate) room: usize,
    /// Blocks of a head that there is room for.
    pub(crate) most: usize,
    pub(crate) keys: Store,
    pub(crate) values: Store,
}

/// Keys, or values.
#[derive(Debug, Clone)]
pub(crate) struct Store {
    pub layout: BlockLayout,
    /// `[kv_heads, room, head_dim]`.
    pub dense: Vec<u8>,
    /// `[kv_heads, most]` blocks, then `READ_AHEAD` bytes.
    pub blocks: Vec<u8>,
}

impl SparseKvShape {
    /// Blocks that can ever be packed.
    pub(crate) fn most_blocks(&self) -> usize {
        self.capacity.saturating_sub(self.sinks.saturating_add(self.tail)) / BLOCK
    }

    /// Tokens of the dense part where they come a few at a time.
    pub(crate) fn usual_room(&self) -> usize {
        self.sinks.saturating_add(self.tail).saturating_add(2 * BLOCK).min(self.capacity)
    }

    pub(crate) fn row_bytes(&self) -> usize {
        self.dtype.row_bytes(self.head_dim)
    }

    fn dense_bytes(&self, room: usize) -> usize {
        self.kv_heads * room * self.row_bytes()
    }

    /// Bytes that a cache of this shape takes.
    pub fn bytes(&self) -> usize {
        let layouts = [self.key_sparsity, self.value_sparsity].map(|sparsity| self.layout(sparsity));
        layouts.iter().map(|layout| self.dense_bytes(self.usual_room()) + self.block_bytes(layout)).sum()
    }

    fn layout(&self, sparsity: f32) -> BlockLayout {
        let n = BLOCK * self.head_dim;
        let kept = n - (f64::from(sparsity) * n as f64) as usize;
        BlockLayout { dtype: self.dtype, head_dim: self.head_dim, kept }
    }

    fn block_bytes(&self, layout: &BlockLayout) -> usize {
        self.kv_heads * self.most_blocks() * layout.bytes() + READ_AHEAD
    }

    fn store(&self, sparsity: f32) -> Store {
        let layout = self.layout(sparsity);
        Store {
            layout,
            dense: vec![0; self.dense_bytes(self.usual_room())],
            blocks: vec![0; self.block_bytes(&layout)],
        }
    }
}

impl SparseKv {
    /// Tokens of a block.
    pub const BLOCK: usize = BLOCK;

    /// An empty cache.
    ///
    /// # Panics
    /// If the type is int4, or a sparsity is not in 0..=1.
    pub fn new(shape: SparseKvShape) -> Self {
        let SparseKvShape { dtype, key_sparsity, value_sparsity, .. } = shape;
        assert!(dtype <= DType::I8, "a sparse cache cannot hold {dtype}");
        for sparsity in [key_sparsity, value_sparsity] {
            assert!((0.0..=1.0).contains(&sparsity), "a sparsity of {sparsity} is not in 0..=1");
        }
        let (keys, values) = (shape.store(key_sparsity), shape.store(value_sparsity));
        SparseKv { shape, len: 0, packed: 0, room: shape.usual_room(), most: shape.most_blocks(), keys, values }
    }

    /// What it was made for.
    pub fn shape(&self) -> &SparseKvShape {
        &self.shape
    }

    /// Tokens stored.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing is stored.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Tokens that are packed: those from the sinks on.
    pub fn packed(&self) -> usize {
        self.packed
    }

    /// Makes room for `capacity` tokens, if there is less, and keeps what is stored: the cache is then as if made with
    /// that capacity.
    pub fn reserve(&mut self, capacity: usize) {
        if capacity <= self.shape.capacity {
            return;
        }
        self.shape.capacity = capacity;
        if self.room < self.shape.usual_room() {
            self.resize(self.len - self.packed, self.shape.usual_room());
        }
        if self.most < self.shape.most_blocks() {
            self.resize_blocks(self.packed / BLOCK, self.shape.most_blocks());
        }
    }

    /// Bytes of all keys and values there is room for.
    pub fn bytes(&self) -> usize {
        [&self.keys, &self.values].iter().map(|store| store.dense.len() + store.blocks.len()).sum()
    }

    /// The tokens in blocks that lie within the first `len`, whole.
    pub(crate) fn packed_within(&self, len: usize) -> usize {
        self.packed.min(len.saturating_sub(self.shape.sinks) / BLOCK * BLOCK)
    }

    /// Gives the dense part room for `room` tokens, of which the first `rows` are kept.
    pub(crate) fn resize(&mut self, rows: usize, room: usize) {
        let row_bytes = self.shape.row_bytes();
        for store in [&mut self.keys, &mut self.values] {
            let mut dense = vec![0; self.shape.dense_bytes(room)];
            for head in 0..self.shape.kv_heads {
                let at = |room: usize| head * room * row_bytes..(head * room + rows) * row_bytes;
                dense[at(room)].copy_from_slice(&store.dense[at(self.room)]);
            }
            store.dense = dense;
        }
        self.room = room;
    }

    /// Gives every head room for `most` blocks, of which the first `kept` are kept.
    pub(crate) fn resize_blocks(&mut self, kept: usize, most: usize) {
        for store in [&mut self.keys, &mut self.values] {
            let bytes = store.layout.bytes();
            let mut blocks = vec![0; self.shape.kv_heads * most * bytes + READ_AHEAD];
            for head in 0..self.shape.kv_heads {
                let at = |most: usize| head * most * bytes..(head * most + kept) * bytes;
                blocks[at(most)].copy_from_slice(&store.blocks[at(self.most)]);
            }
            store.blocks = blocks;
        }
        self.most = most;
    }
}
