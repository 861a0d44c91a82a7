//! A cache of keys and values that keeps recent tokens as they are and older ones pruned by magnitude (SparAMX, arXiv
//! 2502.12444), packed as bitmap and non-zeros.

pub(crate) mod block;

use crate::Compute;
use crate::dtype::DType;
use crate::ops::attention::{DenseKv, KvRows, KvView};
use crate::ops::encode::KvMut;
use crate::ops::expand;
use crate::shared_mut::SharedMut;
use block::{BlockLayout, PackedRun, READ_AHEAD};
use std::ops::Range;

/// Tokens that are pruned and packed together.
pub(crate) const BLOCK: usize = 64;

/// Multiply-adds that packing one element is worth.
const COST: usize = 16;

/// What a [`SparseKv`] is made for.
#[derive(Clone, Copy, Debug)]
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

/// Keys and values of one sequence in one layer. Tokens come in dense; [`pack`](Self::pack) prunes and packs, 64 at a time, those
/// that are older than the tail.
///
/// Of each head's block of 64 tokens the `floor(sparsity · 64 · head_dim)` keys, and values, of smallest magnitude are dropped,
/// so a block's size is known beforehand: memory for all blocks is taken at once, zeroed, and becomes resident as blocks are
/// written. Neither storing single tokens nor packing allocates.
#[derive(Debug, Clone)]
pub struct SparseKv {
    shape: SparseKvShape,
    len: usize,
    /// Tokens in blocks, a multiple of `BLOCK`: those after the sinks.
    packed: usize,
    /// Tokens that the dense part has room for: sinks, then what is not packed.
    room: usize,
    keys: Store,
    values: Store,
}

/// Keys, or values.
#[derive(Debug, Clone)]
struct Store {
    layout: BlockLayout,
    /// `[kv_heads, room, head_dim]`.
    dense: Vec<u8>,
    /// `[kv_heads, most blocks]`, then `READ_AHEAD` bytes.
    blocks: Vec<u8>,
}

impl SparseKvShape {
    /// Blocks that can ever be packed.
    fn most_blocks(&self) -> usize {
        self.capacity.saturating_sub(self.sinks.saturating_add(self.tail)) / BLOCK
    }

    /// Tokens of the dense part where they come a few at a time.
    fn usual_room(&self) -> usize {
        self.sinks.saturating_add(self.tail).saturating_add(2 * BLOCK).min(self.capacity)
    }

    fn row_bytes(&self) -> usize {
        self.dtype.row_bytes(self.head_dim)
    }

    fn dense_bytes(&self, room: usize) -> usize {
        self.kv_heads * room * self.row_bytes()
    }

    fn store(&self, sparsity: f32) -> Store {
        let n = BLOCK * self.head_dim;
        let kept = n - (f64::from(sparsity) * n as f64) as usize;
        let layout = BlockLayout { dtype: self.dtype, head_dim: self.head_dim, kept };
        Store {
            layout,
            dense: vec![0; self.dense_bytes(self.usual_room())],
            blocks: vec![0; self.kv_heads * self.most_blocks() * layout.bytes() + READ_AHEAD],
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
        SparseKv { shape, len: 0, packed: 0, room: shape.usual_room(), keys, values }
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

    /// Bytes of all keys and values there is room for.
    pub fn bytes(&self) -> usize {
        [&self.keys, &self.values].iter().map(|store| store.dense.len() + store.blocks.len()).sum()
    }

    /// Stores keys and values, `[rows, kv_heads, head_dim]` each, of the tokens at `first` and the positions after it, dense;
    /// what was stored from `first` on is forgotten. See [`Compute::store_kv`].
    ///
    /// # Panics
    /// If the lengths do not match, `first` is beyond what is stored or packed already, or the tokens do not fit.
    pub fn store(&mut self, compute: &Compute, first: usize, keys: &[f32], values: &[f32]) {
        let SparseKvShape { dtype, kv_heads, head_dim, capacity, .. } = self.shape;
        let rows = keys.len().checked_div(kv_heads * head_dim).unwrap_or(0);
        assert!(first <= self.len, "store: position {first} of a cache of {} tokens", self.len);
        assert!(self.packed == 0 || first >= self.shape.sinks + self.packed, "store: position {first} is packed");
        assert!(rows <= capacity - first, "store: positions {first}..{} of {capacity}", first + rows);
        let row = first - self.packed;
        if row + rows > self.room {
            self.resize(row, row + rows);
        }
        let cache = KvMut { dtype, keys: &mut self.keys.dense, values: &mut self.values.dense, capacity: self.room };
        compute.store_kv(cache, kv_heads, head_dim, row, keys, values);
        self.len = first + rows;
    }

    /// Prunes and packs every block all of whose tokens are older than the tail. Whether there was one. Parallel over heads and
    /// blocks.
    pub fn pack(&mut self, compute: &Compute) -> bool {
        let SparseKvShape { kv_heads, head_dim, sinks, tail, .. } = self.shape;
        let blocks = self.len.saturating_sub(sinks.saturating_add(tail)).saturating_sub(self.packed) / BLOCK;
        if blocks == 0 {
            return false;
        }
        let (row_bytes, most, room) = (self.shape.row_bytes(), self.shape.most_blocks(), self.room);
        let before = self.packed / BLOCK;
        let stores = [&mut self.keys, &mut self.values]
            .map(|Store { layout, dense, blocks }| (*layout, &**dense, SharedMut::new(blocks)));
        let work = 2 * blocks * BLOCK * kv_heads * head_dim * COST;
        compute.parallel(2 * kv_heads * blocks, work, &|task| {
            let (layout, dense, to) = &stores[task % 2];
            let (head, block) = (task / 2 / blocks, task / 2 % blocks);
            let from = (head * room + sinks + block * BLOCK) * row_bytes;
            let at = (head * most + before + block) * layout.bytes();
            let mut scratch = compute.scratch.take(2 * BLOCK * head_dim + 1);
            // SAFETY: every block belongs to one task.
            let to = unsafe { to.part(at..at + layout.bytes()) };
            layout.pack(&dense[from..from + BLOCK * row_bytes], &mut scratch, to);
        });
        let rows = self.len - self.packed;
        for store in [&mut self.keys, &mut self.values] {
            for head in 0..kv_heads {
                let at = |row: usize| (head * room + row) * row_bytes;
                store.dense.copy_within(at(sinks + blocks * BLOCK)..at(rows), at(sinks));
            }
        }
        self.packed += blocks * BLOCK;
        if room > self.shape.usual_room() {
            // A long prompt needed more.
            self.resize(self.len - self.packed, self.shape.usual_room());
        }
        true
    }

    /// Forgets all but the first `len` tokens; nothing if there are no more. Tokens whose block was packed keep what is left of
    /// them: where `len` is within a block its first tokens go back to the dense part, pruned as they are, until the block is
    /// full and packed again.
    pub fn truncate(&mut self, compute: &Compute, len: usize) {
        if len >= self.len {
            return;
        }
        let sinks = self.shape.sinks;
        self.len = len;
        if self.packed == 0 || len >= sinks + self.packed {
            return;
        }
        let kept = len.saturating_sub(sinks) / BLOCK * BLOCK;
        let (row_bytes, rows) = (self.shape.row_bytes(), len.saturating_sub(sinks + kept));
        for head in 0..self.shape.kv_heads {
            let runs = self.runs(compute, head, kept);
            let at = (head * self.room + sinks) * row_bytes;
            for (store, run) in [&mut self.keys, &mut self.values].into_iter().zip(runs) {
                // SAFETY: these rows are packed.
                unsafe { expand_run(run, rows, &mut store.dense[at..at + rows * row_bytes]) };
            }
        }
        self.packed = kept;
    }

    /// Copies the rows of head `head` at `positions` as they would be in a dense cache, zeros where elements were dropped, to
    /// `keys` and `values`, `[positions, head_dim]` each.
    ///
    /// # Panics
    /// If the lengths do not match, or there is no such head or position.
    pub fn read(&self, compute: &Compute, head: usize, positions: Range<usize>, keys: &mut [u8], values: &mut [u8]) {
        assert!(head < self.shape.kv_heads, "read: head {head} of {}", self.shape.kv_heads);
        assert!(positions.end <= self.len, "read: positions {positions:?} of {}", self.len);
        let row_bytes = self.shape.row_bytes();
        assert_eq!(keys.len(), positions.len() * row_bytes, "read: keys.len() is not that of {positions:?}");
        assert_eq!(values.len(), keys.len(), "read: values.len() is not keys.len()");
        let [sinks, packed, rest] = self.segments(&positions);
        for (store, to) in [(&self.keys, keys), (&self.values, values)] {
            let (first, to) = to.split_at_mut(sinks.len() * row_bytes);
            let (middle, last) = to.split_at_mut(packed.len() * row_bytes);
            for (rows, to) in [(sinks.clone(), first), (rest.clone(), last)] {
                let at = |row: usize| (head * self.room + row) * row_bytes;
                to.copy_from_slice(&store.dense[at(rows.start)..at(rows.end)]);
            }
            if !packed.is_empty() {
                // SAFETY: these rows are packed.
                unsafe { expand_run(self.run(compute, store, head, packed.start), packed.len(), middle) };
            }
        }
    }

    /// What a token sees that sees positions `start..len`.
    ///
    /// # Panics
    /// In [`Compute::attention`], if fewer are stored.
    pub fn view(&self, start: usize, len: usize) -> KvView<'_> {
        KvView { rows: KvRows::Sparse(self), start, len }
    }

    /// Rows of the dense part, of the blocks and of the dense part again that hold these positions.
    pub(crate) fn segments(&self, positions: &Range<usize>) -> [Range<usize>; 3] {
        // Without blocks, sinks and tail are one.
        let sinks = if self.packed == 0 { 0 } else { self.shape.sinks };
        let (from, to) = (positions.start, positions.end.max(positions.start));
        let end = sinks + self.packed;
        let within = |low: usize, high: usize| from.clamp(low, high)..to.clamp(low, high);
        let (packed, rest) = (within(sinks, end), within(end, usize::MAX));
        [within(0, sinks), packed.start - sinks..packed.end - sinks, rest.start - self.packed..rest.end - self.packed]
    }

    /// The dense part.
    pub(crate) fn dense(&self) -> DenseKv<'_> {
        let Self { keys, values, room, .. } = self;
        DenseKv { dtype: self.shape.dtype, keys: &keys.dense, values: &values.dense, capacity: *room }
    }

    /// The packed keys and values of a head from row `first` of its blocks on.
    pub(crate) fn runs(&self, compute: &Compute, head: usize, first: usize) -> [PackedRun; 2] {
        [&self.keys, &self.values].map(|store| self.run(compute, store, head, first))
    }

    fn run(&self, compute: &Compute, store: &Store, head: usize, first: usize) -> PackedRun {
        let expand = compute.kernels.expand[expand::kernel(self.shape.dtype)];
        let at = (head * self.shape.most_blocks() + first / BLOCK) * store.layout.bytes();
        PackedRun { blocks: store.blocks[at..].as_ptr(), layout: store.layout, row: first % BLOCK, expand }
    }

    /// Gives the dense part room for `room` tokens, of which the first `rows` are kept.
    fn resize(&mut self, rows: usize, room: usize) {
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
}

/// Writes `count` packed rows as they would be in a dense cache.
///
/// # Safety
/// The run must have them.
unsafe fn expand_run(run: PackedRun, count: usize, to: &mut [u8]) {
    let row_bytes = run.layout.dtype.row_bytes(run.layout.head_dim);
    assert_eq!(to.len(), count * row_bytes);
    let mut done = 0;
    while done < count {
        // SAFETY: the caller vouches for the run, and `to` has room for the rest of its rows.
        unsafe {
            let rows = run.rows(done, count - done);
            rows.expand(to[done * row_bytes..].as_mut_ptr(), row_bytes);
            done += rows.count;
        }
    }
}
